"""Exponential moving average (EMA) of the adapter: steadier than its last values, exported beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from stages.adapters.stacked.layer_group import StackedParameter
from stages.train.optim.update_rules import join_keys, split_by_key


class AdapterEma:
    """fp32 averages on the parameters' device, starting at the adapter's start (Polyak & Juditsky 1992, with decay)."""

    def __init__(self, stacks: Sequence[StackedParameter]) -> None:
        self.stacks = stacks
        self.trained = [stack.parameter.detach() for stack in stacks]
        self.values = [parameter.clone() for parameter in self.trained]
        # On the device, so that a captured graph reads what the host has written there.
        self.weight = torch.zeros((), device=self.trained[0].device)
        self.current_weight = 0.0

    def set_weight(self, weight: float) -> None:
        """Set how much of the adapter enters at the next step (1 - decay)."""
        if weight != self.current_weight:
            self.weight.fill_(weight)
            self.current_weight = weight

    @torch.no_grad()
    def update(self, non_finite: Tensor) -> None:
        """Move towards the adapter, unless its update was skipped because it was not finite."""
        moves = torch._foreach_sub(self.trained, self.values)
        torch._foreach_mul_(moves, torch.where(non_finite, 0.0, self.weight))
        torch._foreach_add_(self.values, moves)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Context in which the adapter has the averaged values."""
        kept = [parameter.clone() for parameter in self.trained]
        _copy(self.values, self.trained)
        try:
            yield
        finally:
            _copy(kept, self.trained)

    def state(self) -> dict[str, Tensor]:
        """CPU copies, by the keys of an adapter file."""
        pairs = ((stack, value) for stack, value in zip(self.stacks, self.values, strict=True))
        return {
            name: one.to("cpu", copy=True).contiguous()
            for stack, value in pairs
            for name, one in zip(stack.keys, split_by_key(value, stack), strict=True)
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for stack, value in zip(self.stacks, self.values, strict=True):
            value.copy_(join_keys([state[name] for name in stack.keys], stack))


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
