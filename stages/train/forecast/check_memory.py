"""The check before a training begins: says how much memory it will take, and refuses what cannot fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from stages.errors import InsufficientMemory
from stages.models.device import dtype_named, usable_dtype
from stages.plural import size as size_in_words
from stages.train.dataset.audio_prefetch import BYTES_PER_SAMPLE, MIN_SECONDS_TO_PREFETCH, PREFETCH_BYTES
from stages.train.dataset.clips import LATENT_CACHE_BYTES
from stages.train.forecast.batch_shapes import clip_frames, largest_batches, num_lengths
from stages.train.forecast.estimate import TrainingSetup, memory_estimate, waiting_bytes
from stages.train.forecast.free_memory import free_bytes, host_bytes
from stages.train.forecast.remedies import decide, heaviest
from stages.train.job import Job
from stages.train.record.checkpoint import newest_step
from stages.train.setup import checkpoint_folders


def check_memory(job: Job) -> Job:
    """Reports the memory that a training needs; returns the job, with gradient checkpointing if memory is short.

    Raises:
        InsufficientMemory: it cannot fit; names the settings that would.
        FilterMatchesNothing, UnsupportedModelConfig.
    """
    if steps_left(job) == 0:
        return job
    resources, free = job.work.resources, free_bytes(job.device)
    setup, said = decide(training_setup(job), free, resources.gradient_checkpointing)
    refuse_full_host(setup)
    for line in (estimate_line(setup, free), *said):
        job.work.say(line)
    if not setup.checkpointing:
        return job
    return replace(job, work=replace(job.work, resources=replace(resources, gradient_checkpointing="on")))


def steps_left(job: Job) -> int:
    """Steps still to be made: those asked for less the step of the newest checkpoint."""
    total = job.params.number_of_steps
    return total - newest_step(checkpoint_folders(job), total)


def estimate_line(setup: TrainingSetup, free: int | None) -> str:
    """Such as `memory: about 4.6 GB needed, 149.3 GB left on cuda (weights 2.9 GB, ...)`."""
    estimate = memory_estimate(setup)
    left = "" if free is None else f", {size_in_words(free)} left"
    return (
        f"memory: about {size_in_words(estimate.total_bytes)} needed{left} on {setup.device} ({estimate.breakdown()})"
    )


def refuse_full_host(setup: TrainingSetup) -> None:
    """Checks that the host can hold the batches of one step, which wait there on whatever device they are trained.

    Raises:
        InsufficientMemory.
    """
    free, needed = host_bytes(), waiting_bytes(setup)
    if setup.device.type != "cuda" or free is None or needed <= free:
        return
    count = setup.params.gradient_accumulation
    flags = f"--gradient-accumulation {max(1, int(count * (free / needed)))}"
    raise InsufficientMemory(
        "the host", size_in_words(needed), size_in_words(free), f"the {count} batches of a step", [flags], []
    )


def training_setup(job: Job) -> TrainingSetup:
    """The input of the estimate, from settings, the artifact's facts and the clips' lengths; no weight is read."""
    params, facts = job.params, job.artifact.facts

    def quietly(precision: str) -> torch.dtype:
        return usable_dtype(dtype_named(precision), job.device, lambda line: None)

    graphs = job.device.type == "cuda" and job.work.resources.fast_path != "off"
    batches = largest_batches(job, recorded=graphs)
    asked = TrainingSetup(
        config=job.weights.config,
        params=params,
        batch=batches[0],
        longest=None if params.frames_per_batch is None else batches[-1],
        dtype=quietly(params.base_precision),
        device=job.device,
        eager=job.work.resources.fast_path == "off",
        clip_samples=None if params.pre_encode else int(facts["window_samples"]),
        autoencoder_dtype=quietly(params.autoencoder_precision),
        clips_bytes=0 if job.device.type == "cuda" else clips_bytes(job),
        num_lengths=num_lengths(job, steps_left(job)) if job.device.type == "cpu" else 1,
    )
    # A clip beyond the budget is a batch of its own.
    return heaviest(asked, batches if batches[-1].num_frames > (params.frames_per_batch or 0) else batches[:1])


def clips_bytes(job: Job) -> int:
    """Host memory of cached latents and of prefetched audio."""
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
