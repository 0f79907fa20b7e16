"""Which clips a step sees, where they are cropped, what is masked: all of a step but the network.

A batch is as long as its longest item needs: clip, then a random stretch of silence, at most the window. Padding beyond
an item's own end is masked, so nothing is padded to the model's native length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.train.clips import Clips, excerpt_frames
from stages.train.draws import Chance, coins, crop_start, extensions, normals
from stages.train.masks import inpainting_mask
from stages.train.prompts import Prompts
from stages.train.stage import TrainParams
from stages.train.timesteps import effective_frames, timesteps

# B clips, C latent channels, T frames.

Shift = Callable[[Tensor, Tensor], Tensor]
"""(timestep_B, num_frames_B) -> timestep_B, moved towards noise for long clips."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's examples."""

    clip_ids: tuple[str, ...]
    crop_starts: tuple[int, ...]
    """First sample of each excerpt inside its clip."""
    latents_BCT: Tensor
    """float32; silence behind each clip."""
    noise_BCT: Tensor
    """float32, before it is paired with clips."""
    timestep_B: Tensor
    """float32, after the shift for length."""
    real_BT: Tensor
    """bool, True for the clip and its extension into silence: attended to and trained on."""
    given_BT: Tensor
    """bool, True where latents are handed to the network."""
    dropped_B: Tensor
    """bool, True where the prompt is withheld."""
    seconds_total_B: Tensor
    """float32, of the whole recording."""
    hidden: tuple[Tensor, ...]
    """Prompt hidden states of each item, (tokens, width)."""
    all_real: bool
    """No padding at all; known without asking the device."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        held: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in held.items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def clip_order(chance: Chance, num_clips: int, batch_size: int, step: int) -> list[int]:
    """Clips of one step. Every epoch is a new permutation, and batches walk on across epochs.

    So each clip is seen once per epoch, no clip is dropped, and a batch may be larger than the dataset. (The reference
    drops the rest of each epoch that fills no batch.)
    """
    places = range(step * batch_size, (step + 1) * batch_size)
    epochs = {place // num_clips for place in places}
    permutations = {epoch: chance.at("order", epoch).permutation(num_clips) for epoch in epochs}
    return [int(permutations[place // num_clips][place % num_clips]) for place in places]


def batch_at(step: int, clips: Clips, prompts: Prompts, params: TrainParams, chance: Chance, shift: Shift) -> Batch:
    """The batch of one step; the same for the same arguments.

    In distribution the reference's, apart from what the length of the batch changes: silence is drawn first and decides
    it, noise and padding latents exist up to there only, and so do their shares in the pairing of noise with clips.
    """
    indices = clip_order(chance, len(clips.subjects), params.batch_size, step)
    subjects = [clips.subjects[index] for index in indices]
    starts = crops(clips, indices, chance.at("crop", step))
    flipped = coins(chance.at("flip", step), len(indices), 0.5 if clips.flips and params.polarity_flip else 0.0)
    real = real_frames(clips, indices, params, chance.at("silence", step))
    num_frames = int(real.max())
    excerpts = [clips.read(*choice) for choice in zip(indices, starts, flipped.tolist(), strict=True)]
    latents_BCT = torch.stack([followed_by_silence(excerpt, clips.silence_CT, num_frames) for excerpt in excerpts])
    masks = chance.at("mask", step)
    given = [inpainting_mask(masks, num_frames, int(count), params.mask_probabilities) for count in real]
    drawn_B = timesteps(chance.at("timestep", step), len(indices), params.timestep_truncation)
    return Batch(
        clip_ids=tuple(subject.clip_id for subject in subjects),
        crop_starts=tuple(start * clips.samples_per_unit for start in starts),
        latents_BCT=latents_BCT,
        noise_BCT=normals(chance.at("noise", step), *latents_BCT.shape),
        timestep_B=shift(drawn_B, whole_frames(clips, indices)),
        real_BT=torch.from_numpy(np.arange(num_frames) < real[:, None]),
        given_BT=torch.from_numpy(np.stack(given)),
        dropped_B=torch.from_numpy(coins(chance.at("prompt dropout", step), len(indices), params.cfg_dropout_prob)),
        seconds_total_B=torch.tensor([subject.seconds_total for subject in subjects], dtype=torch.float32),
        hidden=tuple(prompts.of([subject.prompt_key for subject in subjects])),
        all_real=bool((real == num_frames).all()),
    )


def crops(clips: Clips, indices: Sequence[int], generator: np.random.Generator) -> list[int]:
    """Where each excerpt starts, in the source's units."""
    return [crop_start(generator, clips.subjects[index].size, clips.window) for index in indices]


def real_frames(
    clips: Clips, indices: Sequence[int], params: TrainParams, generator: np.random.Generator
) -> np.ndarray:
    """(B,) int64: frames of each excerpt and its random extension into silence, at most the window."""
    window = -(-clips.window * clips.samples_per_unit // clips.samples_per_frame)
    mean = params.silence_extension_seconds * clips.sample_rate_hz / clips.samples_per_frame
    lengths = np.array([excerpt_frames(clips, index) for index in indices])
    return np.minimum(lengths + extensions(generator, len(indices), mean), window)


def whole_frames(clips: Clips, indices: Sequence[int]) -> Tensor:
    """(B,) int64: frames of each whole recording."""
    seconds = [clips.subjects[index].seconds_total for index in indices]
    return torch.tensor([effective_frames(each, clips.sample_rate_hz, clips.samples_per_frame) for each in seconds])


def followed_by_silence(latents_CT: Tensor, silence_CT: Tensor, num_frames: int) -> Tensor:
    """(C, num_frames): the clip, then the first frames of silence, whose last two are repeated as often as needed.

    Two, because chunked attention holds two frames in a chunk, so that its silence alternates; a sliding window's
    silence is constant by then, and repeats itself either way.
    """
    stored = silence_CT.shape[1]
    wanted = torch.arange(num_frames - latents_CT.shape[1])
    behind = silence_CT[:, torch.where(wanted < stored, wanted, stored - 2 + (wanted - stored) % 2)]
    return torch.cat([latents_CT, behind], dim=1)
