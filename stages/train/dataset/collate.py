"""Makes the batch of a step: crops, silence, noise, timesteps and masks; everything of a step but the network.

A batch is as long as its longest item needs: the clip, then random silence, at most the window. Padding behind an
item is masked, so nothing is padded to the model's native length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.train.dataset.batch import Batch
from stages.train.dataset.clips import Clips, all_excerpt_frames, excerpt_seconds, window_frames
from stages.train.dataset.inpainting_masks import inpainting_mask
from stages.train.dataset.prompt_embeddings import PromptEmbeddings
from stages.train.dataset.sampler import Sampler
from stages.train.dataset.timesteps import effective_frames, timesteps
from stages.train.rng import StepRng, bernoulli, crop_start, silence_extensions, standard_normal
from stages.train.stage import TrainParams

# B clips, C latent channels, T frames: the legend of ARCHITECTURE.md.

TimestepShift = Callable[[Tensor, Tensor], Tensor]
"""(timestep_B, num_frames_B) -> timestep_B, moved towards noise for long clips."""


@dataclass(frozen=True, kw_only=True)
class Excerpts:
    """Crops of the clips of a step, before anything is read."""

    clips: tuple[int, ...]
    """Index of each clip."""
    starts: tuple[int, ...]
    """First unit of each crop, in the source's units."""
    flipped: tuple[bool, ...]
    """Whether the sign of the audio is flipped."""
    frames: tuple[int, ...]
    """Frames of each, with the silence behind it, at most the window."""
    microbatch_sizes: tuple[int, ...]
    """How many consecutive ones go through the network at a time."""


def excerpts_of_step(step: int, clips: Clips, sampler: Sampler, params: TrainParams, rng: StepRng) -> Excerpts:
    """The excerpts of one step; the same for the same arguments."""
    visits = sampler.visits(step)
    indices = visits.clips_B.tolist()
    flipped = bernoulli(rng.generator("flip", step), len(indices), 0.5 if clips.flips and params.polarity_flip else 0.0)
    frames_B = visits.frames_B
    if frames_B is None:
        frames_B = real_frames(clips, indices, params, rng.generator("silence", step))
    return Excerpts(
        clips=tuple(indices),
        starts=tuple(crop_starts(clips, indices, rng.generator("crop", step))),
        flipped=tuple(flipped.tolist()),
        frames=tuple(frames_B.tolist()),
        microbatch_sizes=visits.microbatch_sizes,
    )


def batch_of_step(
    step: int,
    clips: Clips,
    prompts: PromptEmbeddings,
    sampler: Sampler,
    params: TrainParams,
    rng: StepRng,
    shift: TimestepShift,
) -> Batch:
    """The batch of one step, all its microbatches together; the same for the same arguments.

    In distribution it is the reference's, apart from what the length of the batch changes: silence is drawn first and
    decides the length, and noise and padding latents exist up to there only, also in the pairing of noise with clips.
    """
    excerpts = excerpts_of_step(step, clips, sampler, params, rng)
    entries = [clips.entries[index] for index in excerpts.clips]
    num_frames, count = max(excerpts.frames), len(excerpts.clips)
    read = [clips.read(*each) for each in zip(excerpts.clips, excerpts.starts, excerpts.flipped, strict=True)]
    latents_BCT = torch.stack([extended_with_silence(each_CT, clips.silence_CT, num_frames) for each_CT in read])
    masks = rng.generator("mask", step)
    given = [inpainting_mask(masks, num_frames, frames, params.mask_probabilities) for frames in excerpts.frames]
    unshifted_B = timesteps(rng.generator("timestep", step), count, params.timestep_truncation)
    seconds = conditioning_seconds(clips, excerpts.clips, params)
    return Batch(
        clip_ids=tuple(entry.clip_id for entry in entries),
        crop_starts=tuple(start * clips.samples_per_unit for start in excerpts.starts),
        latents_BCT=latents_BCT,
        noise_BCT=standard_normal(rng.generator("noise", step), *latents_BCT.shape),
        timestep_B=shift(unshifted_B, effective_lengths(clips, seconds)),
        real_BT=torch.from_numpy(np.arange(num_frames) < np.array(excerpts.frames)[:, None]),
        given_BT=torch.from_numpy(np.stack(given)),
        dropped_B=torch.from_numpy(bernoulli(rng.generator("prompt dropout", step), count, params.cfg_dropout_prob)),
        seconds_total_B=torch.tensor(seconds, dtype=torch.float32),
        hidden=tuple(prompts.lookup([entry.prompt_key for entry in entries])),
        all_real=min(excerpts.frames) == num_frames,
        microbatch_sizes=excerpts.microbatch_sizes,
    )


def crop_starts(clips: Clips, indices: Sequence[int], generator: np.random.Generator) -> list[int]:
    """Random start of each excerpt, in the source's units."""
    return [crop_start(generator, int(size), clips.window) for size in clips.sizes[list(indices)]]


def real_frames(
    clips: Clips, indices: Sequence[int], params: TrainParams, generator: np.random.Generator
) -> np.ndarray:
    """(B,) int64: frames of each excerpt and its random extension into silence, at most the window."""
    mean = params.silence_extension_seconds * clips.sample_rate_hz / clips.samples_per_frame
    lengths = all_excerpt_frames(clips, clips.sizes[list(indices)])
    return np.minimum(lengths + silence_extensions(generator, len(indices), mean), window_frames(clips))


def conditioning_seconds(clips: Clips, indices: Sequence[int], params: TrainParams) -> list[float]:
    """Duration that the network is conditioned on: of the whole recording, or of the excerpt if `crop_seconds` is on.

    The shift of timesteps for length follows it, as the reference takes both from one number.
    """
    if params.crop_seconds:
        return [excerpt_seconds(clips, index) for index in indices]
    return [clips.entries[index].seconds_total for index in indices]


def effective_lengths(clips: Clips, seconds: Sequence[float]) -> Tensor:
    """(B,) int64: frames of recordings of so many seconds."""
    return torch.tensor([effective_frames(each, clips.sample_rate_hz, clips.samples_per_frame) for each in seconds])


def extended_with_silence(latents_CT: Tensor, silence_CT: Tensor, num_frames: int) -> Tensor:
    """(C, num_frames): the clip, then frames of silence, the last two of which are repeated as often as needed.

    Two, because chunked attention has two frames in a chunk, so that its silence alternates; silence of a sliding
    window is constant by then, and repeats itself either way.
    """
    stored = silence_CT.shape[1]
    wanted = torch.arange(num_frames - latents_CT.shape[1])
    behind = silence_CT[:, torch.where(wanted < stored, wanted, stored - 2 + (wanted - stored) % 2)]
    return torch.cat([latents_CT, behind], dim=1)
