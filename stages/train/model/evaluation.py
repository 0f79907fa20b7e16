"""Evaluation: the loss on fixed clips, noise and timesteps, comparable before and after training.

Training losses vary with the timesteps that are drawn; this one differs by the adapter alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from stages.models.device import explain_out_of_memory
from stages.train.dataset.batch import Batch
from stages.train.dataset.clips import excerpt_frames
from stages.train.dataset.collate import conditioning_seconds
from stages.train.dataset.examples import Examples
from stages.train.model.network import Network, batch_losses
from stages.train.rng import standard_normal

TIMESTEPS = (0.1, 0.3, 0.5, 0.7, 0.9)
MAX_CLIPS = 16
"""Evenly spaced over the dataset, so that a large one costs no more than a small one."""
MAX_FRAMES = 512
"""Frames from the start of a clip (about 48 s with the published models), for the same reason."""


@dataclass(frozen=True)
class Evaluation:
    """Mean squared velocity error without context frames, prompts never withheld."""

    by_timestep: tuple[float, ...]
    """Mean over the clips, for each of TIMESTEPS."""

    @property
    def loss(self) -> float:
        return float(np.mean(self.by_timestep))


@torch.no_grad()
def evaluate(network: Network, examples: Examples, device: torch.device) -> Evaluation:
    """The evaluation of a network: one forward pass per clip, all timesteps in one batch. Raises: OutOfMemory."""
    network.train(False)
    batches = (batch.to(device) for batch in fixed_batches(examples))
    with explain_out_of_memory("evaluating", device), network.precomputed_weights():
        per_clip = torch.stack([batch_losses(network, batch, paired=False).generated_B for batch in batches])
    network.train(True)
    return Evaluation(tuple(per_clip.cpu().double().mean(dim=0).tolist()))  # mps has no float64


def fixed_batches(examples: Examples) -> Iterator[Batch]:
    """One batch per chosen clip: its beginning at every timestep, each with its own noise."""
    count = len(examples.clips.entries)
    for index in sorted({number * count // MAX_CLIPS for number in range(MAX_CLIPS)}):
        yield fixed_batch(examples, index)


def fixed_batch(examples: Examples, index: int) -> Batch:
    """One clip at every timestep of TIMESTEPS."""
    clips, copies = examples.clips, len(TIMESTEPS)
    entry = clips.entries[index]
    latents_CT = clips.read(index, 0, False)[:, : min(MAX_FRAMES, excerpt_frames(clips, index))]
    num_frames = latents_CT.shape[1]
    (seconds,) = conditioning_seconds(clips, [index], examples.params)
    return Batch(
        clip_ids=(entry.clip_id,) * copies,
        crop_starts=(0,) * copies,
        latents_BCT=latents_CT.expand(copies, -1, -1),
        noise_BCT=standard_normal(examples.rng.generator("evaluation noise", index), copies, *latents_CT.shape),
        timestep_B=torch.tensor(TIMESTEPS),
        real_BT=torch.ones(copies, num_frames, dtype=torch.bool),
        given_BT=torch.zeros(copies, num_frames, dtype=torch.bool),
        dropped_B=torch.zeros(copies, dtype=torch.bool),
        seconds_total_B=torch.full((copies,), seconds, dtype=torch.float32),
        hidden=tuple(examples.prompts.lookup([entry.prompt_key] * copies)),
        all_real=True,
    )
