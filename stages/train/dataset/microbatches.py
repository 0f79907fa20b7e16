"""A step's batch in the parts that go through the network one after the other, and count as one."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from stages.train.dataset.batch import Batch
from stages.train.dataset.ot_coupling import pairing

# B clips, C latent channels, T frames.


def parts_of(batch: Batch, *, paired: bool) -> list[Batch]:
    """The batch itself, or each of its parts, no longer than its own clips need.

    Args:
        batch: on the CPU.
        paired: noise is dealt out among clips of one part later; among several parts that is done here, as it is in
            the larger batch that they stand for.
    """
    if len(batch.parts) < 2:
        return [batch]
    whole = dealt(batch) if paired else batch
    ends = [sum(batch.parts[: place + 1]) for place in range(len(batch.parts))]
    return [shortened(cut(whole, end - count, end)) for count, end in zip(batch.parts, ends, strict=True)]


def dealt(batch: Batch) -> Batch:
    """Noise paired with clips over the whole batch."""
    return replace(batch, noise_BCT=batch.noise_BCT[pairing(batch.latents_BCT, batch.noise_BCT)])


def cut(batch: Batch, start: int, stop: int) -> Batch:
    """Consecutive clips of a batch."""
    held: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    pieces: dict[str, Any] = {
        name: value[start:stop] for name, value in held.items() if isinstance(value, Tensor | tuple) and name != "parts"
    }
    return replace(batch, **pieces, parts=())


def shortened(batch: Batch) -> Batch:
    """Without frames that no clip has."""
    longest = int(batch.real_BT.sum(dim=1).max())
    names = ("latents_BCT", "noise_BCT", "real_BT", "given_BT")
    cut_off: dict[str, Any] = {name: getattr(batch, name)[..., :longest] for name in names}
    return replace(batch, **cut_off, all_real=bool(batch.real_BT[:, :longest].all()))
