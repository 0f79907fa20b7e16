"""Whether a training fits into a device's memory, and which settings would make it fit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from stages.errors import InsufficientMemory
from stages.model_config import ModelConfig
from stages.train.forecast.estimate import TrainingSetup, amount, estimated, waiting_bytes
from stages.train.forecast.network_size import BatchSize
from stages.train.stage import MOST_ACCUMULATED


class Remedy(NamedTuple):
    """A setting that needs less memory, as it is typed, and the training with it."""

    flags: str
    setup: TrainingSetup


class Change(NamedTuple):
    """One setting that may be changed."""

    values: Sequence[int]
    """To what, the least change first; none where it cannot be changed. Further changes never need more memory."""
    flags: Callable[[int], str]
    setup: Callable[[int], TrainingSetup]
    """The training with such a value."""

    def remedy(self, free: int) -> Remedy:
        """The first value that fits, or else the last."""
        first = bisect_left(self.values, True, key=lambda value: fits(self.setup(value), free))
        value = self.values[min(first, len(self.values) - 1)]
        return Remedy(self.flags(value), self.setup(value))


def remedies(setup: TrainingSetup, free: int) -> tuple[list[Remedy], list[Remedy]]:
    """Settings each of which is enough by itself; where there is none, those that are enough together, in order."""
    found = [change.remedy(free) for make in CHANGES if (change := make(setup)).values]
    alone = [remedy for remedy in found if fits(remedy.setup, free)]
    return alone, [] if alone else _together(setup, free)


def _together(setup: TrainingSetup, free: int) -> list[Remedy]:
    """One change after the other until it fits, cutting clips shorter last; none if it never does."""
    made: list[Remedy] = []
    for make in sorted(CHANGES, key=lambda make: make is shorter_clips):
        if (change := make(setup)).values:
            made.append(change.remedy(free))
            setup = made[-1].setup
            if fits(setup, free):
                return made
    return []


def needed(setup: TrainingSetup) -> int:
    """Bytes, by the estimate itself, without its error."""
    return estimated(setup).total


def fits(setup: TrainingSetup, free: int) -> bool:
    """Whether that is free."""
    return needed(setup) <= free


def _switched(flags: str, wanted: bool, changed: TrainingSetup) -> Change:
    """A setting with one other value."""
    return Change([1] if wanted else [], lambda value: flags, lambda value: changed)


def gradient_checkpointing(setup: TrainingSetup) -> Change:
    """Blocks computed again in the backward pass."""
    return _switched("--gradient-checkpointing on", not setup.checkpointing, replace(setup, checkpointing=True))


def pre_encoding(setup: TrainingSetup) -> Change:
    """Latents encoded beforehand, so that no autoencoder is held."""
    return _switched("--pre-encode", setup.clip_samples is not None, replace(setup, clip_samples=None))


def smaller_batches(setup: TrainingSetup) -> Change:
    """The same step in more passes."""
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
    """A window of fewer seconds."""
    config, by_frames = ModelConfig(setup.config), setup.params.frames_per_batch is not None
    rate, ratio = config.sample_rate_hz, config.downsampling_ratio
    most = 0 if by_frames else -(-setup.batch.num_frames * ratio // rate) - 1

    def lasting(seconds: int) -> TrainingSetup:
        samples = None if setup.clip_samples is None else seconds * rate
        return replace(setup, batch=replace(setup.batch, num_frames=-(-seconds * rate // ratio)), clip_samples=samples)

    return Change(range(most, 0, -1), lambda seconds: f"--duration {seconds}", lasting)


def narrower_base(setup: TrainingSetup) -> Change:
    """Base and activations in 16 bits."""
    return _in_precision(setup, setup.params.base_precision == "fp32", "bf16", torch.bfloat16)


def wider_base(setup: TrainingSetup) -> Change:
    """Base and activations in 32 bits, for which the CPU keeps no kernels of every length."""
    return _in_precision(setup, setup.dtype.itemsize < 4, "fp32", torch.float32)


def _in_precision(setup: TrainingSetup, possible: bool, name: str, dtype: torch.dtype) -> Change:
    other = replace(setup, params=replace(setup.params, base_precision=name), dtype=dtype)
    return _switched(f"--base-precision {name}", possible and needed(other) < needed(setup), other)


def base_in_8_bits(setup: TrainingSetup) -> Change:
    """The base's matrices stored in 8 bits. It is loaded before: of a small batch, that is when most is held."""
    other = replace(setup, params=replace(setup.params, base_quantization="int8"))
    possible = setup.params.base_quantization == "none" and needed(other) < needed(setup)
    return _switched("--base-quantization int8", possible, other)


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
    most = setup.params.gradient_accumulation - 1 if 2 * waiting_bytes(setup) >= needed(setup) else 0

    def adding_up(count: int) -> TrainingSetup:
        return replace(setup, params=replace(setup.params, gradient_accumulation=count))

    return Change(range(most, 0, -1), lambda count: f"--gradient-accumulation {count}", adding_up)


CHANGES = (
    *(gradient_checkpointing, pre_encoding, smaller_batches, shorter_clips, narrower_base, wider_base),
    *(base_in_8_bits, fewer_frames, fewer_batches),
)
"""What changes the training least comes first."""


def heaviest(setup: TrainingSetup, batches: Iterable[BatchSize]) -> TrainingSetup:
    """With that of some batches which takes most memory."""
    return max((replace(setup, batch=batch) for batch in batches), key=needed)


def decide(setup: TrainingSetup, free: int | None, setting: str = "auto") -> tuple[TrainingSetup, list[str]]:
    """The same, or with gradient checkpointing where that is left to us and memory is short; and what to say of it.

    Args:
        free: bytes; None is not known, and refuses nothing.
        setting: `auto`, `on` or `off`, of gradient checkpointing.

    Raises:
        InsufficientMemory: not even the low end of the estimate's error fits.
    """
    setup = replace(setup, checkpointing=setting == "on")
    if free is None or fits(setup, free):
        return setup, []
    said = []
    if setting == "auto":
        setup = replace(setup, checkpointing=True)
        said.append("memory would be short: gradient checkpointing is turned on")
    if estimated(setup).least > free:
        raise refusal(setup, free)
    if not fits(setup, free):
        alone, together = remedies(setup, free)
        flags = " or ".join(remedy.flags for remedy in alone) or " ".join(remedy.flags for remedy in together)
        instead = flags or "a smaller --model or another --device"
        said.append(f"it may not fit into the memory left; if it does not: {instead}")
    return setup, said


def refusal(setup: TrainingSetup, free: int) -> InsufficientMemory:
    """The error that says what is needed, what there is, and what to type instead."""
    estimate, (alone, together) = estimated(setup), remedies(setup, free)
    return InsufficientMemory(
        str(setup.device),
        amount(estimate.total),
        amount(free),
        estimate.words(),
        [f"{remedy.flags}  (about {amount(needed(remedy.setup))})" for remedy in alone],
        [remedy.flags for remedy in together],
    )
