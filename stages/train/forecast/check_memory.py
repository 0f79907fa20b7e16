"""What people are told before a training begins: how much memory and time it will take; what cannot fit ends here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from stages.errors import InsufficientMemory
from stages.models.device import dtype_named, usable_dtype
from stages.train.dataset.audio_prefetch import BYTES_PER_SAMPLE, MIN_SECONDS_TO_PREFETCH, PREFETCH_BYTES
from stages.train.dataset.clips import LATENT_CACHE_BYTES
from stages.train.forecast.batch_shapes import clip_frames, largest_batches, num_lengths
from stages.train.forecast.device_speed import measured_speed
from stages.train.forecast.estimate import Estimate, Prospect, amount, estimated, waiting_bytes
from stages.train.forecast.free_memory import free_bytes, host_bytes
from stages.train.forecast.remedies import Settled, heaviest, settled
from stages.train.job import Job
from stages.train.record.checkpoint import newest_step
from stages.train.setup import checkpoint_folders

known_speed = lru_cache(16)(measured_speed)
"""Of a device and a precision, measured once in a process."""


def foreseen(job: Job) -> Job:
    """The job, after saying what it needs; with blocks recomputed where that is left to us and memory is short.

    Raises:
        InsufficientMemory: it cannot fit; names the settings that would.
        FilterMatchesNothing, UnsupportedModelConfig.
    """
    resources, free = job.work.resources, free_bytes(job.device)
    if steps_left(job) == 0:
        return job
    try:
        decided = settled(prospect_of(job), free, resources.gradient_checkpointing)
        refuse_full_host(decided.prospect)
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
    for said in (line(estimate, prospect, free, steps_left(job)), *decided.remarks):
        job.work.say(said)


def steps_left(job: Job) -> int:
    """Of those asked for, where a checkpoint has the others, by its name."""
    total = job.params.number_of_steps
    return total - newest_step(checkpoint_folders(job), total)


def refuse_full_host(prospect: Prospect) -> None:
    """The batches of a step wait on the host, whatever the device.

    Raises:
        InsufficientMemory: the host cannot hold them.
    """
    free, needed = host_bytes(), waiting_bytes(prospect)
    if prospect.device.type != "cuda" or free is None or needed <= free:
        return
    count = prospect.params.gradient_accumulation
    flags = f"--gradient-accumulation {max(1, int(count * (free / needed)))}"
    raise InsufficientMemory("the host", amount(needed), amount(free), f"the {count} batches of a step", [flags], [])


def prospect_of(job: Job) -> Prospect:
    """What the job asks for, read off its settings, its artifact's facts and its clips' lengths; not off any weight."""
    params, facts = job.params, job.artifact.facts

    def quietly(precision: str) -> torch.dtype:
        return usable_dtype(dtype_named(precision), job.device, lambda line: None)

    recorded = job.device.type == "cuda" and job.work.resources.fast_path != "off"
    sizes = largest_batches(job, recorded=recorded)
    asked = Prospect(
        config=job.weights.config,
        params=params,
        size=sizes[0],
        alone=None if params.frames_per_batch is None else sizes[-1],
        dtype=quietly(params.base_precision),
        device=job.device,
        plain=job.work.resources.fast_path == "off",
        clip_samples=None if params.pre_encode else int(facts["window_samples"]),
        autoencoder_dtype=quietly(params.autoencoder_precision),
        clips_bytes=0 if job.device.type == "cuda" else clips_bytes(job),
        num_lengths=num_lengths(job, steps_left(job)) if job.device.type == "cpu" else 1,
    )
    # A clip beyond the budget is a batch of its own.
    return heaviest(asked, sizes if sizes[-1].num_frames > (params.frames_per_batch or 0) else sizes[:1])


def clips_bytes(job: Job) -> int:
    """Of latents that are kept in the host's memory, and of audio that is read ahead into it."""
    frames, facts = clip_frames(job), job.artifact.facts
    frame_bytes = job.weights.sizes.latent_channels * 4
    if job.params.pre_encode:
        stored_bytes = frame_bytes // 2 if facts.get("latent_dtype") == "float16" else frame_bytes
        return min(LATENT_CACHE_BYTES, int(frames.sum()) * stored_bytes)
    window = int(facts["window_frames"])
    whole = frames[frames <= window]
    kept = min(LATENT_CACHE_BYTES, 2 * int(whole.sum()) * frame_bytes)
    samples = int(np.minimum(frames, window).sum()) * job.model.downsampling_ratio
    few = len(whole) == len(frames) and 2 * samples < MIN_SECONDS_TO_PREFETCH * job.model.sample_rate_hz
    reads_ahead = job.work.resources.workers > 0 or not few
    return kept + (min(PREFETCH_BYTES, samples * BYTES_PER_SAMPLE) if reads_ahead else 0)


def line(estimate: Estimate, prospect: Prospect, free: int | None, steps: int) -> str:
    """Such as `estimate: about 4.3 GiB of 139.0 GiB left on cuda (weights ...); about 0:17 for 1000 steps at 17 ms`."""
    room = "" if free is None else f" of {amount(free)} left"
    said = f"estimate: about {amount(estimate.total_bytes)}{room} on {prospect.device} ({estimate.parts()})"
    if estimate.seconds_per_step is None:
        return said
    return f"{said}; {duration_words(estimate.seconds_per_step, steps)}{''.join(apart(prospect))}"


def apart(prospect: Prospect) -> Iterator[str]:
    """What the time is without."""
    if prospect.manner.operation_seconds > 0:
        yield ", compiling apart"
    if prospect.clip_samples is not None:
        yield ", encoding apart"


def duration_words(seconds_per_step: float, steps: int) -> str:
    """Such as `about 0:17 for 1000 steps at 17 ms`."""
    total = round(seconds_per_step * steps)
    hours, minutes, seconds = total // 3600, total // 60 % 60, total % 60
    clock = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    each = f"{seconds_per_step * 1e3:.0f} ms" if seconds_per_step < 1 else f"{seconds_per_step:.1f} s"
    return f"about {clock} for {steps} steps at {each}"
