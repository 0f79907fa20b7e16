"""One batch of training examples. Letters: B clips, C latent channels, T frames."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from stages.train.dataset.ot_coupling import pairing


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
    """float32, what the network is told; whole recordings unless `crop_seconds` says otherwise.

    Where an excerpt starts is told to no model there is: none has a conditioner for seconds_start.
    """
    hidden: tuple[Tensor, ...]
    """Prompt hidden states of each item, (tokens, width)."""
    all_real: bool
    """No padding at all; known without asking the device."""
    microbatch_sizes: tuple[int, ...] = ()
    """How many consecutive clips go through the network at a time; empty: all at once."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        held: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in held.items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def microbatches(batch: Batch, *, paired: bool) -> list[Batch]:
    """The batch itself, or each of its parts, no longer than its own clips need.

    Args:
        batch: on the CPU.
        paired: noise is dealt out among clips of one part later; among several parts that is done here, as it is in
            the larger batch that they stand for.
    """
    if len(batch.microbatch_sizes) < 2:
        return [batch]
    whole = dealt(batch) if paired else batch
    ends = [sum(batch.microbatch_sizes[: place + 1]) for place in range(len(batch.microbatch_sizes))]
    return [shortened(cut(whole, end - count, end)) for count, end in zip(batch.microbatch_sizes, ends, strict=True)]


def dealt(batch: Batch) -> Batch:
    """Noise paired with clips over the whole batch."""
    return replace(batch, noise_BCT=batch.noise_BCT[pairing(batch.latents_BCT, batch.noise_BCT)])


def cut(batch: Batch, start: int, stop: int) -> Batch:
    """Consecutive clips of a batch."""
    held: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    pieces: dict[str, Any] = {
        name: value[start:stop]
        for name, value in held.items()
        if isinstance(value, Tensor | tuple) and name != "microbatch_sizes"
    }
    return replace(batch, **pieces, microbatch_sizes=())


def shortened(batch: Batch) -> Batch:
    """Without frames that no clip has."""
    longest = int(batch.real_BT.sum(dim=1).max())
    names = ("latents_BCT", "noise_BCT", "real_BT", "given_BT")
    cut_off: dict[str, Any] = {name: getattr(batch, name)[..., :longest] for name in names}
    return replace(batch, **cut_off, all_real=bool(batch.real_BT[:, :longest].all()))
