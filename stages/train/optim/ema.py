"""An exponential moving average of the adapter: steadier than its last value, exported beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from stages.adapters.stacked.layer_group import StackedParameter
from stages.train.optim.update_rules import parts, whole


class Average:
    """fp32, on the parameters' device; starts at the adapter's start (Polyak & Juditsky 1992, with forgetting)."""

    def __init__(self, stacks: Sequence[StackedParameter]) -> None:
        self.stacks = stacks
        self.trained = [stack.parameter.detach() for stack in stacks]
        self.values = [parameter.clone() for parameter in self.trained]
        # On the device, so that a recorded step reads what the host has written there.
        self.weight = torch.zeros((), device=self.trained[0].device)
        self.set_to = 0.0

    def set_weight(self, weight: float) -> None:
        """How much of the adapter enters at the next step."""
        if weight != self.set_to:
            self.weight.fill_(weight)
            self.set_to = weight

    @torch.no_grad()
    def follow(self, broken: Tensor) -> None:
        """Move towards the adapter, unless its update was refused."""
        moves = torch._foreach_sub(self.trained, self.values)
        torch._foreach_mul_(moves, torch.where(broken, 0.0, self.weight))
        torch._foreach_add_(self.values, moves)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the adapter has the average's values."""
        kept = [parameter.clone() for parameter in self.trained]
        _copy(self.values, self.trained)
        try:
            yield
        finally:
            _copy(kept, self.trained)

    def state(self) -> dict[str, Tensor]:
        """CPU copies, by the names of an adapter file."""
        pairs = ((stack, value) for stack, value in zip(self.stacks, self.values, strict=True))
        return {
            name: one.to("cpu", copy=True).contiguous()
            for stack, value in pairs
            for name, one in zip(stack.keys, parts(value, stack), strict=True)
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for stack, value in zip(self.stacks, self.values, strict=True):
            value.copy_(whole([state[name] for name in stack.keys], stack))


def _copy(values: Sequence[Tensor], places: Sequence[Tensor]) -> None:
    for value, place in zip(values, places, strict=True):
        place.copy_(value)
