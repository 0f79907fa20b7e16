"""Optimiser of the fp32 adapter parameters, which skips non-finite updates without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stages.adapters.stacked.layer_group import StackedParameter
from stages.train.optim.ema import AdapterEma
from stages.train.optim.lr_schedule import ema_weight, learning_rate
from stages.train.optim.update_rules import update_rule
from stages.train.stage import TrainParams

_EPS = 1e-6
"""Added to the norm of a gradient before dividing by it."""


class Optimizer:
    """Takes the gradients of one or several backward passes, clips them, and applies update rule and EMA.

    Once a loss or gradient is not finite, the flag `non_finite` is set on the device and no later update is applied:
    parameters, moments and average stay as they were before that step, however late the host looks at the flag.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        params: TrainParams,
        stacks: Sequence[StackedParameter] | None = None,
    ) -> None:
        """An optimiser of these parameters.

        Args:
            parameters: by the keys of an adapter file, under which moments are saved.
            stacks: stacked tensors of which `parameters` are views; these are trained in their place.
        """
        self.params = params
        self.stacks = single_stacks(parameters) if stacks is None else list(stacks)
        self.trained = [stack.parameter for stack in self.stacks]
        device = self.trained[0].device
        self.rule = update_rule(params, self.stacks)
        self.ema = None if params.ema_decay is None else AdapterEma(self.stacks)
        self.non_finite = torch.zeros((), dtype=torch.bool, device=device)
        self.gradients: list[Tensor] = []
        """Gradients of the last update, as applied; in the order of `trained`."""
        self.num_updates = 0
        """Updates made by this process; one that was made must not be made again, whatever fails after it."""
        self._discards = False

    def begin_step(self, step: int) -> None:
        """Set learning rate and EMA weight of a step, counted from 0."""
        self.rule.set_rate(learning_rate(self.params, step))
        if self.ema is not None and self.params.ema_decay is not None:
            self.ema.set_weight(ema_weight(self.params.ema_decay, step))

    def zero_grad(self) -> None:
        """Drop the gradients of the last step; until then they can be inspected."""
        for parameter in self.trained:
            parameter.grad = None

    def apply_gradients(self, loss: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """Apply the gradients that backward passes have left; returns their norm before clipping, a 0-d tensor.

        Args:
            loss: loss of those passes; only checked for being finite.
            scale: what the loss was multiplied by before them; gradients are divided by it.
        """
        for parameter in self.trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        if isinstance(scale, Tensor):
            torch._foreach_div_(self.gradients, scale)
        elif scale != 1.0:
            torch._foreach_mul_(self.gradients, 1.0 / scale)
        norm = nn.utils.get_total_norm(self.gradients)
        # In place: a captured graph writes to the flag that the host reads.
        # x - x is 0, or NaN where x is not finite; and NaN is unequal to everything.
        self.non_finite.logical_or_((norm - norm) != (loss - loss))
        if self.params.gradient_clip is not None:
            torch._foreach_mul_(self.gradients, (self.params.gradient_clip / (norm + _EPS)).clamp(max=1.0))
        self.rule.step(self.non_finite)
        if self.ema is not None:
            self.ema.update(self.non_finite)
        self.num_updates += not self._discards
        return norm

    def clear_non_finite(self) -> None:
        """Accept updates again after a non-finite one was skipped: the state is that before it."""
        self.non_finite.zero_()

    @contextmanager
    def discarding_updates(self) -> Iterator[None]:
        """Context in which updates are computed in full but not applied: parameters, moments and average stay the same.

        A flag set before stays set afterwards.
        """
        before, self._discards = self.non_finite.clone(), True
        self.non_finite.fill_(True)
        try:
            yield
        finally:
            self.non_finite.copy_(before)
            self._discards = False

    def state(self) -> dict[str, Tensor]:
        """CPU copies of the state of rule and EMA."""
        averaged = {} if self.ema is None else self.ema.state()
        return self.rule.state() | {f"average.{name}": tensor for name, tensor in averaged.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned, to the bit."""
        averaged = {name.removeprefix("average."): state[name] for name in state if name.startswith("average.")}
        self.rule.load({name: state[name] for name in state if not name.startswith("average.")})
        if self.ema is not None:
            self.ema.load(averaged)


def single_stacks(parameters: Mapping[str, nn.Parameter]) -> list[StackedParameter]:
    """Each tensor as a stack of its own."""
    return [
        StackedParameter(parameter=parameter, keys=(name,), unstacked=True) for name, parameter in parameters.items()
    ]
