"""What people are told before a training begins: how much memory and time it will take; what cannot fit ends here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch

from cache.manifest import read_rows
from stages.models._device import usable_dtype
from stages.records import Clip, EncodedClip
from stages.train.estimate import Estimate, Prospect, amount, estimated
from stages.train.fitting import Settled, settled
from stages.train.job import DTYPES, Job
from stages.train.rehearsal import Size
from stages.train.room import free_bytes
from stages.train.speed import measured_speed
from stages.train.stage import TrainParams

known_speed = lru_cache(16)(measured_speed)
"""Of a device and a precision, measured once in a process."""


def foreseen(job: Job) -> Job:
    """The job, after saying what it needs; with blocks recomputed where that is left to us and memory is short.

    Raises:
        MemoryShort: it cannot fit; names the settings that would.
        FilterMatchesNothing, NetworkNotSupported.
    """
    resources, free = job.work.resources, free_bytes(job.device)
    try:
        decided = settled(prospect_of(job), free, resources.gradient_checkpointing)
    except NotImplementedError as error:
        # Torch has no rule for the shape of some operation: a reason for no estimate, but for no refusal either.
        job.work.say(f"no estimate of memory and time: {str(error).splitlines()[0]}")
        return job
    tell(job, decided, free)
    if not decided.prospect.checkpointing:
        return job
    return replace(job, work=replace(job.work, resources=replace(resources, gradient_checkpointing="on")))


def tell(job: Job, decided: Settled, free: int | None) -> None:
    """One line with the figures, then what has been decided or is to be feared."""
    prospect = decided.prospect
    estimate = estimated(prospect, known_speed(job.device, prospect.dtype))
    for said in (line(estimate, prospect, free), *decided.remarks):
        job.work.say(said)


def prospect_of(job: Job) -> Prospect:
    """What the job asks for, read off its settings and its artifact's facts; no weight is looked at."""
    params, facts = job.params, job.artifact.facts

    def quietly(precision: str) -> torch.dtype:
        return usable_dtype(DTYPES[precision], job.device, lambda line: None)

    return Prospect(
        config=job.weights.config,
        params=params,
        size=largest_batch(job),
        dtype=quietly(params.base_precision),
        device=job.device,
        clip_samples=None if params.pre_encode else int(facts["window_samples"]),
        autoencoder_dtype=quietly(params.autoencoder_precision),
    )


def largest_batch(job: Job) -> Size:
    """The most that goes through the network at a time: clips as long as the window, or as many short ones as fit."""
    window, budget = int(job.artifact.facts["window_frames"]), job.params.frames_per_batch
    if budget is None:
        return Size(num_clips=job.params.batch_size, num_frames=window)
    frames = min(window, max(shortest_clip(job), 1))
    if budget < window:
        # A clip beyond the budget is a batch of its own.
        return Size(num_clips=1, num_frames=window)
    # Every clip brings memory tokens and a prompt along: of batches of so many frames, short clips take most.
    return (
        Size(num_clips=budget // frames, num_frames=frames)
        if budget >= frames
        else Size(num_clips=1, num_frames=window)
    )


def shortest_clip(job: Job) -> int:
    """Frames of it."""
    manifest = job.artifact.directory / "manifest.parquet"
    if job.params.pre_encode:
        return min(row.num_valid_frames for row in read_rows(manifest, EncodedClip))
    return -(-min(row.num_samples for row in read_rows(manifest, Clip)) // job.model.downsampling_ratio)


def line(estimate: Estimate, prospect: Prospect, free: int | None) -> str:
    """Such as `estimate: about 4.3 GiB of 139.0 GiB left on cuda (weights ...); about 0:17 for 1000 steps at 17 ms`."""
    room = "" if free is None else f" of {amount(free)} left"
    said = f"estimate: about {amount(estimate.total_bytes)}{room} on {prospect.device} ({estimate.parts()})"
    if estimate.seconds_per_step is None:
        return said
    return f"{said}; {duration_words(estimate.seconds_per_step, prospect.params)}{''.join(apart(prospect))}"


def apart(prospect: Prospect) -> Iterator[str]:
    """What the time is without."""
    if prospect.manner.operation_seconds > 0:
        yield ", compiling apart"
    if prospect.clip_samples is not None:
        yield ", encoding apart"


def duration_words(seconds_per_step: float, params: TrainParams) -> str:
    """Such as `about 0:17 for 1000 steps at 17 ms`."""
    total = round(seconds_per_step * params.number_of_steps)
    hours, minutes, seconds = total // 3600, total // 60 % 60, total % 60
    clock = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    each = f"{seconds_per_step * 1e3:.0f} ms" if seconds_per_step < 1 else f"{seconds_per_step:.1f} s"
    return f"about {clock} for {params.number_of_steps} steps at {each}"
