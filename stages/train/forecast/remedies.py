"""Whether a training fits into a device's memory, and which settings would make it fit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from stages.errors import InsufficientMemory
from stages.model_config import ModelConfig
from stages.plural import size as size_in_words
from stages.train.forecast.estimate import TrainingSetup, memory_estimate, waiting_bytes
from stages.train.forecast.network_size import BatchSize
from stages.train.stage import MOST_ACCUMULATED


class Remedy(NamedTuple):
    """A setting with which a training needs less memory."""

    flags: str
    """The setting as typed on the command line."""
    setup: TrainingSetup
    """The training with this setting."""


class Change(NamedTuple):
    """The values that one setting can be changed to."""

    values: Sequence[int]
    """The least change first, which needs most memory; empty where the setting cannot be changed."""
    flags: Callable[[int], str]
    """A value as typed on the command line."""
    setup: Callable[[int], TrainingSetup]
    """The training with a value."""

    def remedy(self, free_bytes: int) -> Remedy:
        """The first value that fits, or else the last."""
        first = bisect_left(self.values, True, key=lambda value: fits(self.setup(value), free_bytes))
        value = self.values[min(first, len(self.values) - 1)]
        return Remedy(self.flags(value), self.setup(value))


def remedies(setup: TrainingSetup, free_bytes: int) -> tuple[list[Remedy], list[Remedy]]:
    """Settings each of which suffices alone; if there is none, settings that suffice together."""
    found = [change.remedy(free_bytes) for make in CHANGES if (change := make(setup)).values]
    alone = [remedy for remedy in found if fits(remedy.setup, free_bytes)]
    return alone, [] if alone else _together(setup, free_bytes)


def _together(setup: TrainingSetup, free_bytes: int) -> list[Remedy]:
    """One change after the other until the training fits, clips cut shorter last; empty if it never fits."""
    made: list[Remedy] = []
    for make in sorted(CHANGES, key=lambda make: make is shorter_clips):
        if (change := make(setup)).values:
            made.append(change.remedy(free_bytes))
            setup = made[-1].setup
            if fits(setup, free_bytes):
                return made
    return []


def needed_bytes(setup: TrainingSetup) -> int:
    """The estimate itself, without its error."""
    return memory_estimate(setup).total_bytes


def fits(setup: TrainingSetup, free_bytes: int) -> bool:
    """Whether the estimate is within what is free."""
    return needed_bytes(setup) <= free_bytes


def _one_value(flags: str, possible: bool, changed: TrainingSetup) -> Change:
    """A setting with one other value."""
    return Change([1] if possible else [], lambda value: flags, lambda value: changed)


def gradient_checkpointing(setup: TrainingSetup) -> Change:
    """Recompute blocks in the backward pass."""
    return _one_value("--gradient-checkpointing on", not setup.checkpointing, replace(setup, checkpointing=True))


def pre_encoding(setup: TrainingSetup) -> Change:
    """Encode latents beforehand, so that no autoencoder is in memory."""
    return _one_value("--pre-encode", setup.clip_samples is not None, replace(setup, clip_samples=None))


def smaller_batches(setup: TrainingSetup) -> Change:
    """Smaller batches and more of them in a step, with the same clips in all."""
    size, by_frames = setup.params.batch_size, setup.params.frames_per_batch is not None
    clips_per_step = size * setup.params.gradient_accumulation
    parts = [] if by_frames else [part for part in range(size - 1, 0, -1) if size % part == 0]

    def in_parts(part: int) -> TrainingSetup:
        params = replace(setup.params, batch_size=part, gradient_accumulation=clips_per_step // part)
        return replace(setup, batch=replace(setup.batch, num_clips=part), params=params)

    return Change(
        [part for part in parts if clips_per_step // part <= MOST_ACCUMULATED],
        lambda part: f"--batch-size {part} --gradient-accumulation {clips_per_step // part}",
        in_parts,
    )


def shorter_clips(setup: TrainingSetup) -> Change:
    """A shorter window, in whole seconds."""
    config, by_frames = ModelConfig(setup.config), setup.params.frames_per_batch is not None
    rate, ratio = config.sample_rate_hz, config.downsampling_ratio
    most = 0 if by_frames else -(-setup.batch.num_frames * ratio // rate) - 1

    def lasting(seconds: int) -> TrainingSetup:
        samples = None if setup.clip_samples is None else seconds * rate
        return replace(setup, batch=replace(setup.batch, num_frames=-(-seconds * rate // ratio)), clip_samples=samples)

    return Change(range(most, 0, -1), lambda seconds: f"--duration {seconds}", lasting)


def other_precision(setup: TrainingSetup) -> Change:
    """Base and activations in 16 bits instead of 32; or in 32, for which the CPU keeps no kernels of every length."""
    name, dtype = ("bf16", torch.bfloat16) if setup.params.base_precision == "fp32" else ("fp32", torch.float32)
    other = replace(setup, params=replace(setup.params, base_precision=name), dtype=dtype)
    return _one_value(f"--base-precision {name}", needed_bytes(other) < needed_bytes(setup), other)


def base_in_8_bits(setup: TrainingSetup) -> Change:
    """The base's matrices in 8 bits; no gain where loading the base, before it is rounded, takes the most memory."""
    other = replace(setup, params=replace(setup.params, base_quantization="int8"))
    possible = setup.params.base_quantization == "none" and needed_bytes(other) < needed_bytes(setup)
    return _one_value("--base-quantization int8", possible, other)


def fewer_frames(setup: TrainingSetup) -> Change:
    """A smaller budget of frames, down to that of a single clip."""
    frames, by_frames = setup.batch.num_frames, setup.params.frames_per_batch is not None

    def holding(clips: int) -> TrainingSetup:
        params = replace(setup.params, frames_per_batch=clips * frames)
        batches = [replace(setup.batch, num_clips=clips)]
        if setup.longest is not None and setup.longest.num_frames > clips * frames:
            batches.append(setup.longest)
        return heaviest(replace(setup, params=params), batches)

    clips = range(setup.batch.num_clips - 1 if by_frames else 0, 0, -1)
    return Change(clips, lambda clips: f"--frames-per-batch {clips * frames}", holding)


def fewer_batches(setup: TrainingSetup) -> Change:
    """Fewer batches in a step, where those that wait on the host take most of the memory."""
    most = setup.params.gradient_accumulation - 1 if 2 * waiting_bytes(setup) >= needed_bytes(setup) else 0

    def adding_up(count: int) -> TrainingSetup:
        return replace(setup, params=replace(setup.params, gradient_accumulation=count))

    return Change(range(most, 0, -1), lambda count: f"--gradient-accumulation {count}", adding_up)


CHANGES = (
    *(gradient_checkpointing, pre_encoding, smaller_batches, shorter_clips, other_precision, base_in_8_bits),
    *(fewer_frames, fewer_batches),
)
"""Settings that can be changed; those that change the result least come first."""


def heaviest(setup: TrainingSetup, batches: Iterable[BatchSize]) -> TrainingSetup:
    """The setup with that one of the batches which needs the most memory."""
    return max((replace(setup, batch=batch) for batch in batches), key=needed_bytes)


def decide(setup: TrainingSetup, free_bytes: int | None, setting: str = "auto") -> tuple[TrainingSetup, list[str]]:
    """The setup, with gradient checkpointing if memory is short and the setting is `auto`; and lines for the user.

    Args:
        free_bytes: free memory of the device; None: unknown, then nothing is refused.
        setting: value of gradient_checkpointing: `auto`, `on` or `off`.

    Raises:
        InsufficientMemory: not even the low end of the estimate's error fits.
    """
    setup = replace(setup, checkpointing=setting == "on")
    if free_bytes is None or fits(setup, free_bytes):
        return setup, []
    lines = []
    if setting == "auto":
        setup = replace(setup, checkpointing=True)
        lines.append("memory would be short: gradient checkpointing is turned on")
    if memory_estimate(setup).lower_bound_bytes > free_bytes:
        raise refusal(setup, free_bytes)
    if not fits(setup, free_bytes):
        alone, together = remedies(setup, free_bytes)
        flags = " or ".join(remedy.flags for remedy in alone) or " ".join(remedy.flags for remedy in together)
        instead = flags or "a smaller --model or another --device"
        lines.append(f"it may not fit into the memory left; if it does not: {instead}")
    return setup, lines


def refusal(setup: TrainingSetup, free_bytes: int) -> InsufficientMemory:
    """The error: what is needed, what is free, and what to type instead."""
    estimate, (alone, together) = memory_estimate(setup), remedies(setup, free_bytes)
    return InsufficientMemory(
        str(setup.device),
        size_in_words(estimate.total_bytes),
        size_in_words(free_bytes),
        estimate.breakdown(),
        [f"{remedy.flags}  (about {size_in_words(needed_bytes(remedy.setup))})" for remedy in alone],
        [remedy.flags for remedy in together],
    )
