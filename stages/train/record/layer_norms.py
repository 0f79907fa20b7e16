"""Which layers learn: norms of gradient, update and values per group of layers, recorded every 100 steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.adapters.stacked.layer_group import StackedParameter
from stages.train.optim.optimizer import Optimizer
from stages.train.optim.update_rules import split_by_key

RECORD_EVERY = 100
"""Steps from one record of norms to the next; the first step has one."""

_GROUP = re.compile(r"(.*?layers\.\d+|[^.]+\.[^.]+)\.")


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One group of layers in one step (layers.parquet)."""

    step: int
    group: str
    """Name of the group, such as `model.transformer.layers.3`."""
    gradient_norm: float
    """Norm of the gradient as applied, after clipping."""
    update_norm: float
    """Norm of the change that the step made."""
    value_norm: float
    """Norm of the adapter's tensors after the step."""


def group_of(key: str) -> str:
    """The group of a tensor: its block, or the part of the network."""
    found = _GROUP.match(key)
    return found[1] if found else key


def group_names(stacks: Sequence[StackedParameter]) -> list[str]:
    """Groups in the order of their first tensors."""
    return list(dict.fromkeys(group_of(key) for stack in stacks for key in stack.keys))


def is_due(step: int) -> bool:
    """Whether norms of this step, counted from 0, are recorded."""
    return step % RECORD_EVERY == 0


class NormRecorder:
    """Norms of one step: made before the step, read after it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.before = [parameter.detach().clone() for parameter in optimizer.trained]

    def norms(self) -> Tensor:
        """(groups, 3) float32 on the device: norms of gradient, update and values."""
        after, changes = [parameter.detach() for parameter in self.optimizer.trained], self.before
        # In place, as memory may be short: values before minus values after.
        torch._foreach_sub_(changes, after)
        measured = (self.optimizer.gradients, changes, after)
        return torch.stack([norms(each, self.optimizer.stacks) for each in measured], 1)


def norms(values: Sequence[Tensor], stacks: Sequence[StackedParameter]) -> Tensor:
    """(groups,): the norm over all tensors of each group."""
    names = group_names(stacks)
    groups = [names.index(group_of(key)) for stack in stacks for key in stack.keys]
    each = [one for value, stack in zip(values, stacks, strict=True) for one in split_by_key(value, stack)]
    squares = [torch.linalg.vector_norm(one).square() for one in each]
    total = torch.zeros(len(names), device=squares[0].device)
    return total.index_add(0, torch.tensor(groups, device=total.device), torch.stack(squares)).sqrt()
