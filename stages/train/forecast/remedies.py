"""Whether a training fits into a device's memory, and which settings would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from stages.errors import InsufficientMemory
from stages.model_config import ModelConfig
from stages.train.forecast.dry_run import Size
from stages.train.forecast.estimate import Estimate, Prospect, amount, estimated, waiting_bytes
from stages.train.stage import MOST_ACCUMULATED


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A setting that needs less memory."""

    flags: str
    """As they are typed."""
    prospect: Prospect
    """With it."""


Knob = Callable[[Prospect, int], Remedy | None]
"""(what is asked for, free bytes) -> the least change of one setting that fits, or else the furthest; None: no way."""


def remedies(prospect: Prospect, free: int) -> tuple[list[Remedy], list[Remedy]]:
    """Settings each of which is enough by itself; where there is none, those that are enough together, in order."""
    found = [remedy for knob in KNOBS if (remedy := knob(prospect, free)) is not None]
    alone = [remedy for remedy in found if fits(remedy.prospect, free)]
    return alone, [] if alone else _together(prospect, free)


def _together(prospect: Prospect, free: int) -> list[Remedy]:
    """One knob after the other until it fits, cutting clips shorter last; none if it never does."""
    turned: list[Remedy] = []
    for knob in sorted(KNOBS, key=lambda knob: knob is shorter_clips):
        remedy = knob(prospect, free)
        if remedy is not None:
            turned, prospect = [*turned, remedy], remedy.prospect
            if fits(prospect, free):
                return turned
    return []


def fits(prospect: Prospect, free: int) -> bool:
    """By the estimate itself, without its error."""
    return estimated(prospect).total_bytes <= free


def recomputing(prospect: Prospect, free: int) -> Remedy | None:
    """Blocks computed again in the backward pass."""
    if prospect.checkpointing:
        return None
    return Remedy(flags="--gradient-checkpointing on", prospect=replace(prospect, checkpointing=True))


def encoding_first(prospect: Prospect, free: int) -> Remedy | None:
    """No autoencoder beside the training."""
    if prospect.clip_samples is None:
        return None
    return Remedy(flags="--pre-encode", prospect=replace(prospect, clip_samples=None))


def smaller_batches(prospect: Prospect, free: int) -> Remedy | None:
    """The same step in more passes."""
    size, params = prospect.params.batch_size, prospect.params
    if params.frames_per_batch is not None or size == 1:
        return None
    most_parts = MOST_ACCUMULATED // params.gradient_accumulation
    parts = [part for part in range(size - 1, 0, -1) if size % part == 0 and size // part <= most_parts]
    return _first_that_fits([_in_passes(prospect, part) for part in parts], free) if parts else None


def _in_passes(prospect: Prospect, part: int) -> Remedy:
    passes = prospect.params.gradient_accumulation * prospect.params.batch_size // part
    params = replace(prospect.params, batch_size=part, gradient_accumulation=passes)
    flags = f"--batch-size {part} --gradient-accumulation {passes}"
    return Remedy(flags=flags, prospect=replace(_sized(prospect, num_clips=part), params=params))


def shorter_clips(prospect: Prospect, free: int) -> Remedy | None:
    """A window of fewer seconds."""
    rate, ratio = _rates(prospect)
    most = -(-prospect.size.num_frames * ratio // rate) - 1
    if prospect.params.frames_per_batch is not None or most < 1:
        return None

    def lasting(seconds: int) -> Prospect:
        shorter = _sized(prospect, num_frames=-(-seconds * rate // ratio))
        return replace(shorter, clip_samples=None if prospect.clip_samples is None else seconds * rate)

    seconds = largest(most, lambda count: estimated(lasting(count)).total_bytes, free)
    return Remedy(flags=f"--duration {seconds}", prospect=lasting(seconds))


def narrower_base(prospect: Prospect, free: int) -> Remedy | None:
    """Base and activations in 16 bits."""
    if prospect.params.base_precision != "fp32":
        return None
    return _in_precision(prospect, "bf16", torch.bfloat16)


def wider_base(prospect: Prospect, free: int) -> Remedy | None:
    """Base and activations in 32 bits, for which the CPU keeps no kernels of every length."""
    if prospect.dtype.itemsize >= 4 or prospect.params.base_precision == "fp32":
        return None
    return _in_precision(prospect, "fp32", torch.float32)


def _in_precision(prospect: Prospect, name: str, dtype: torch.dtype) -> Remedy | None:
    """None where it would need no less."""
    other = replace(prospect, params=replace(prospect.params, base_precision=name), dtype=dtype)
    if estimated(other).total_bytes >= estimated(prospect).total_bytes:
        return None
    return Remedy(flags=f"--base-precision {name}", prospect=other)


def base_in_8_bits(prospect: Prospect, free: int) -> Remedy | None:
    """The base's matrices stored in 8 bits."""
    if prospect.params.base_quantization != "none":
        return None
    stored = replace(prospect, params=replace(prospect.params, base_quantization="int8"))
    # The base is loaded before it is rounded: of a small batch, that is when most is held.
    if estimated(stored).total_bytes >= estimated(prospect).total_bytes:
        return None
    return Remedy(flags="--base-quantization int8", prospect=stored)


def fewer_frames(prospect: Prospect, free: int) -> Remedy | None:
    """A smaller budget of frames, down to that of a single clip."""
    if prospect.params.frames_per_batch is None or prospect.size.num_clips == 1:
        return None

    def holding(clips: int) -> Prospect:
        params = replace(prospect.params, frames_per_batch=clips * prospect.size.num_frames)
        return replace(_sized(prospect, num_clips=clips), params=params)

    clips = largest(prospect.size.num_clips - 1, lambda count: estimated(holding(count)).total_bytes, free)
    smaller, budget = holding(clips), clips * prospect.size.num_frames
    alone = [] if prospect.alone is None or prospect.alone.num_frames <= budget else [prospect.alone]
    return Remedy(flags=f"--frames-per-batch {budget}", prospect=heaviest(smaller, [smaller.size, *alone]))


def fewer_batches(prospect: Prospect, free: int) -> Remedy | None:
    """Fewer of them in a step, where it is those that wait on the host that take the room."""
    if 2 * waiting_bytes(prospect) < estimated(prospect).total_bytes:
        return None

    def adding_up(count: int) -> Prospect:
        return replace(prospect, params=replace(prospect.params, gradient_accumulation=count))

    most = prospect.params.gradient_accumulation - 1
    count = largest(most, lambda count: estimated(adding_up(count)).total_bytes, free)
    return Remedy(flags=f"--gradient-accumulation {count}", prospect=adding_up(count))


def heaviest(prospect: Prospect, sizes: Sequence[Size]) -> Prospect:
    """With that of some batches which takes most memory."""
    sized = [replace(prospect, size=size) for size in sizes]
    return max(sized, key=lambda one: estimated(one).total_bytes) if len(sized) > 1 else sized[0]


KNOBS: tuple[Knob, ...] = (
    recomputing,
    encoding_first,
    smaller_batches,
    shorter_clips,
    narrower_base,
    wider_base,
    base_in_8_bits,
    fewer_frames,
    fewer_batches,
)
"""What changes the training least comes first."""


def largest(most: int, bytes_of: Callable[[int], int], free: int) -> int:
    """The largest count from 1 to `most` that needs no more than is free, or 1; needs grow in a straight line."""
    least, all_of_it = bytes_of(1), bytes_of(most)
    if all_of_it <= free:
        return most
    slope = (all_of_it - least) / max(most - 1, 1)
    count = max(1, min(most, 1 + int((free - least) / max(slope, 1))))
    while count > 1 and bytes_of(count) > free:
        count -= 1
    return count


def _first_that_fits(choices: list[Remedy], free: int) -> Remedy:
    return next((choice for choice in choices if fits(choice.prospect, free)), choices[-1])


def _sized(prospect: Prospect, **changes: int) -> Prospect:
    return replace(prospect, size=replace(prospect.size, **changes))


def _rates(prospect: Prospect) -> tuple[int, int]:
    """Samples per second, and samples per frame."""
    sizes = ModelConfig(prospect.config)
    return sizes.sample_rate_hz, sizes.downsampling_ratio


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What will be trained, after a look at the memory."""

    prospect: Prospect
    remarks: tuple[str, ...] = ()
    """What people should know of it."""


def settled(prospect: Prospect, free: int | None, setting: str = "auto") -> Settled:
    """The same, or with blocks recomputed where that is left to us and memory is short.

    Args:
        free: bytes; None is not known, and refuses nothing.
        setting: `auto`, `on` or `off`, of gradient checkpointing.

    Raises:
        InsufficientMemory: not even the low end of the estimate's error fits.
    """
    remarks: list[str] = []
    prospect = replace(prospect, checkpointing=setting == "on")
    if free is None or fits(prospect, free):
        return Settled(prospect=prospect)
    if setting == "auto":
        prospect = replace(prospect, checkpointing=True)
        remarks.append("memory would be short: gradient checkpointing is turned on")
    estimate = estimated(prospect)
    if estimate.least_bytes > free:
        raise refusal(prospect, estimate, free)
    if estimate.total_bytes > free:
        remarks.append(warning(prospect, free))
    return Settled(prospect=prospect, remarks=tuple(remarks))


def refusal(prospect: Prospect, estimate: Estimate, free: int) -> InsufficientMemory:
    """The error that says what is needed, what there is, and what to type instead."""
    alone, together = remedies(prospect, free)
    lines = [f"{remedy.flags}  (about {amount(estimated(remedy.prospect).total_bytes)})" for remedy in alone]
    return InsufficientMemory(
        str(prospect.device),
        amount(estimate.total_bytes),
        amount(free),
        estimate.parts(),
        lines,
        [remedy.flags for remedy in together],
    )


def warning(prospect: Prospect, free: int) -> str:
    """Said where the estimate is above what is free, but within its error."""
    alone, together = remedies(prospect, free)
    flags = " or ".join(remedy.flags for remedy in alone) or " ".join(remedy.flags for remedy in together)
    return f"it may not fit into the memory left; if it does not: {flags or 'a smaller --model or another --device'}"
