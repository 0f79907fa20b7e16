"""From losses to an update of the adapter's fp32 parameters; one that is not finite is refused without waiting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stages.adapters.stacked.layer_group import StackedParameter
from stages.train.optim.ema import Average
from stages.train.optim.lr_schedule import ema_weight, learning_rate
from stages.train.optim.update_rules import update_rule
from stages.train.stage import TrainParams

_TINY = 1e-6
"""Keeps a gradient of zero from being divided by."""


class Optimizer:
    """Gradients of one or several backward passes, clipped if asked, handed to the rule and followed by the average.

    Once a loss or gradient is not finite, `broken` is set and no later update is applied: parameters, moments and
    average stay as they were before that step, however late the host looks.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        params: TrainParams,
        stacks: Sequence[StackedParameter] | None = None,
    ) -> None:
        """`stacks`: train these, of which `parameters` are views, instead; moments are known by the views' names."""
        self.params = params
        self.stacks = alone(parameters) if stacks is None else list(stacks)
        self.trained = [stack.parameter for stack in self.stacks]
        device = self.trained[0].device
        self.rule = update_rule(params, self.stacks)
        self.ema = None if params.ema_decay is None else Average(self.stacks)
        self.non_finite = torch.zeros((), dtype=torch.bool, device=device)
        self.gradients: list[Tensor] = []
        """Of the last update, as applied; in the order of `trained`."""
        self.num_updates = 0
        """Made so far by this process. What was made must not be made again, whatever fails after it."""
        self._refuses = False

    def prepare(self, step: int) -> None:
        """Before a step, counted from 0: its learning rate, and how far the average moves."""
        self.rule.set_rate(learning_rate(self.params, step))
        if self.ema is not None and self.params.ema_decay is not None:
            self.ema.set_weight(ema_weight(self.params.ema_decay, step))

    def update(self, loss: Tensor, scale: float = 1.0) -> Tensor:
        """One step along the gradient of `loss`; returns the norm of that gradient, a 0-d tensor on the device.

        Args:
            scale: the backward pass runs on loss * scale; gradients are divided by it.
        """
        self.clear()
        (loss * scale).backward()
        return self.finish(loss.detach(), scale)

    def clear(self) -> None:
        """Forget the gradients of the last step; they are kept until here so that they can be looked at."""
        for parameter in self.trained:
            parameter.grad = None

    def finish(self, loss: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """Apply the gradients that backward passes have left; returns their norm before clipping.

        Args:
            loss: what they belong to, looked at only for being finite.
            scale: what the loss was multiplied by.
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
        # In place: a captured step writes to the flag that the host looks at.
        # A number less itself is 0, or NaN where it is not finite; a NaN equals nothing.
        self.non_finite.logical_or_((norm - norm) != (loss - loss))
        if self.params.gradient_clip is not None:
            torch._foreach_mul_(self.gradients, (self.params.gradient_clip / (norm + _TINY)).clamp(max=1.0))
        self.rule.step(self.non_finite)
        if self.ema is not None:
            self.ema.follow(self.non_finite)
        self.num_updates += not self._refuses
        return norm

    def clear_non_finite(self) -> None:
        """Forget that an update was refused: the state is good."""
        self.non_finite.zero_()

    @contextmanager
    def discarding_updates(self) -> Iterator[None]:
        """Within, every update is made in full but for its effect: parameters, moments, average stay as they are.

        An update that was refused before, and that nobody has looked at yet, stays refused.
        """
        before, self._refuses = self.non_finite.clone(), True
        self.non_finite.fill_(True)
        try:
            yield
        finally:
            self.non_finite.copy_(before)
            self._refuses = False

    def state(self) -> dict[str, Tensor]:
        """CPU copies of what the rule and the average remember."""
        averaged = {} if self.ema is None else self.ema.state()
        return self.rule.state() | {f"average.{name}": tensor for name, tensor in averaged.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take everything back, exactly as `state` gave it."""
        averaged = {name.removeprefix("average."): state[name] for name in state if name.startswith("average.")}
        self.rule.load({name: state[name] for name in state if not name.startswith("average.")})
        if self.ema is not None:
            self.ema.load(averaged)


def alone(parameters: Mapping[str, nn.Parameter]) -> list[StackedParameter]:
    """Every tensor for itself."""
    return [
        StackedParameter(parameter=parameter, keys=(name,), unstacked=True) for name, parameter in parameters.items()
    ]
