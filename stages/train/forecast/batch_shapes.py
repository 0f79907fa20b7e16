"""Sizes of a training's batches, from its clips' lengths alone: no clip is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cache.manifest import read_columns
from stages.records import Clip, EncodedClip
from stages.train.dataset.clips import all_excerpt_frames, window_frames
from stages.train.dataset.sampler import FrameBudgetSampler, sampler_for
from stages.train.forecast.network_size import BatchSize
from stages.train.job import Job

MANIFEST = "manifest.parquet"


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of all clips, with the attributes of `ClipLengths`."""

    sizes: np.ndarray
    window: int
    samples_per_unit: int
    samples_per_frame: int
    sample_rate_hz: int


def lengths_of(job: Job) -> Lengths:
    """Lengths in frames of stored latents, or in samples of prepared audio."""
    params, artifact, ratio = job.params, job.artifact, job.model.downsampling_ratio
    manifest = artifact.directory / MANIFEST
    return Lengths(
        sizes=read_columns(manifest, EncodedClip).numbers("num_valid_frames")
        if params.pre_encode
        else read_columns(manifest, Clip).numbers("num_samples"),
        window=int(artifact.facts["window_frames" if params.pre_encode else "window_samples"]),
        samples_per_unit=ratio if params.pre_encode else 1,
        samples_per_frame=ratio,
        sample_rate_hz=job.model.sample_rate_hz,
    )


def clip_frames(job: Job) -> np.ndarray:
    """(clips,) int64, latent frames of each whole clip."""
    lengths = lengths_of(job)
    return -(-lengths.sizes * lengths.samples_per_unit // lengths.samples_per_frame)


def largest_batches(job: Job, *, recorded: bool) -> list[BatchSize]:
    """The batch that takes most memory and, with a budget of frames, the longest clip as a batch of its own.

    With a budget, batches are those of the first epoch as training draws them, with silence after each clip.

    Args:
        recorded: whether batches are padded to the lengths of CUDA graphs.
    """
    lengths = lengths_of(job)
    if job.params.frames_per_batch is None:
        return [BatchSize(num_clips=job.params.batch_size, num_frames=window_frames(lengths))]
    order = sampler_for(lengths, job.params, job.rng)
    assert isinstance(order, FrameBudgetSampler), "a budget of frames orders clips by it"
    batches = order.round(0)
    longest_N = np.array([frames_B.max() for _, frames_B in batches])
    frames_N = order.rounded(longest_N) if recorded else longest_N
    sizes_N = np.array([len(clips_B) for clips_B, _ in batches])
    # Each clip adds memory tokens, so many short clips take more than a few long ones of as many frames.
    most = int(np.argmax(sizes_N * (frames_N + job.weights.sizes.num_memory_tokens)))
    largest = BatchSize(num_clips=int(sizes_N[most]), num_frames=int(frames_N[most]))
    return [largest, BatchSize(num_clips=1, num_frames=int(frames_N.max()))]


def num_lengths(job: Job, steps: int) -> int:
    """The most different lengths that the batches of so many steps can have, without padding."""
    lengths = lengths_of(job)
    frames = all_excerpt_frames(lengths)
    drawn = job.params.silence_extension_seconds > 0
    possible = window_frames(lengths) - int(frames.min()) + 1 if drawn else len(np.unique(frames))
    return max(1, min(possible, steps * job.params.gradient_accumulation))
