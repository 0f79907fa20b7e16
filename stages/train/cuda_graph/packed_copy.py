"""A batch's tensors in one piece of memory: one copy brings all of them to a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 256
"""Bytes that each tensor begins at a multiple of, as those that a device allocates do."""


def packed(tensors: Sequence[Tensor], *, pinned: bool = False) -> Tensor:
    """(bytes,) uint8 on the CPU: copies of these, one behind the other.

    Args:
        pinned: where a device may read it while the host goes on.
    """
    memory = torch.empty(sum(map(_room, tensors)), dtype=torch.uint8, pin_memory=pinned)
    for place, tensor in zip(places(memory, tensors), tensors, strict=True):
        place.copy_(tensor)
    return memory


def places(memory: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Where `packed` puts tensors of these shapes: views of the memory."""
    found, start = [], 0
    for tensor in like:
        found.append(memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        start += _room(tensor)
    return found


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
