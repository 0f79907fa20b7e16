"""AdamW on the adapter's fp32 parameters, which refuses an update that is not finite without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stages.adapters._together import Stacked
from stages.train.stage import TrainParams

_GUARDED_DEVICES = ("cpu", "cuda")
"""Where torch's fused AdamW takes a flag, on the device, that makes it leave everything as it is."""

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """Decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101) on every adapter tensor, magnitudes included.

    Once a loss or gradient is not finite, `broken` is set and no later update is applied: parameters and moments stay
    as they were before that step, however late the host looks.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        params: TrainParams,
        stacks: Sequence[Stacked] | None = None,
    ) -> None:
        """`stacks`: train these, of which `parameters` are views, instead; moments are known by the views' names."""
        self.names = list(parameters)
        self.stacks = alone(parameters) if stacks is None else list(stacks)
        self.trained = [stack.parameter for stack in self.stacks]
        device = self.trained[0].device
        self.adamw = torch.optim.AdamW(
            self.trained,
            lr=params.learning_rate,
            betas=params.betas,
            eps=params.eps,
            weight_decay=params.weight_decay,
            fused=True if device.type in _GUARDED_DEVICES else None,
            capturable=device.type == "cuda",
        )
        self.guarded = device.type in _GUARDED_DEVICES
        self.broken = torch.zeros((), dtype=torch.bool, device=device)

    def update(self, loss: Tensor, scale: float = 1.0) -> Tensor:
        """One step along the gradient of `loss`; returns the norm of that gradient, a 0-d tensor on the device.

        Args:
            scale: the backward pass runs on loss * scale; gradients are divided by it.
        """
        (loss * scale).backward()
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        if scale != 1.0:
            torch._foreach_mul_(gradients, 1.0 / scale)
        norm = nn.utils.get_total_norm(gradients)
        # In place: a captured step writes to the flag that the host looks at.
        self.broken.logical_or_(~(torch.isfinite(norm) & torch.isfinite(loss.detach())))
        self._step()
        self.adamw.zero_grad()
        return norm

    def _step(self) -> None:
        if self.guarded:
            self.adamw.found_inf = self.broken.float()  # type: ignore[attr-defined]
            self.adamw.step()
        elif not bool(self.broken):
            self.adamw.step()

    def mend(self) -> None:
        """Forget that an update was refused: the state is good."""
        self.broken.zero_()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Within, every update is made in full but for its effect: parameters and moments stay as they are."""
        self.broken.fill_(True)
        try:
            yield
        finally:
            self.mend()

    def state(self) -> dict[str, Tensor]:
        """CPU copies of the moments: `exp_avg.<parameter>`, `exp_avg_sq.<parameter>`, `step.<parameter>`."""
        held: dict[str, dict[str, Tensor]] = {}
        for stack in self.stacks:
            for moment, value in self.adamw.state.get(stack.parameter, {}).items():
                for name, one in zip(stack.keys, _parts(value, stack), strict=True):
                    held.setdefault(name, {})[moment] = one.detach().to("cpu", copy=True)
        return {f"{moment}.{name}": held[name][moment] for name in self.names if name in held for moment in held[name]}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take moments back, exactly as `state` gave them."""
        for stack in self.stacks:
            if f"step.{stack.keys[0]}" in state:
                moments = {
                    moment: _whole([state[f"{moment}.{name}"] for name in stack.keys], stack) for moment in _MOMENTS
                }
                step = state[f"step.{stack.keys[0]}"].to(stack.parameter.device if self.guarded else "cpu", copy=True)
                self.adamw.state[stack.parameter] = {"step": step, **moments}


def alone(parameters: Mapping[str, nn.Parameter]) -> list[Stacked]:
    """Every tensor for itself."""
    return [Stacked(parameter=parameter, keys=(name,), bare=True) for name, parameter in parameters.items()]


def _parts(value: Tensor, stack: Stacked) -> Sequence[Tensor]:
    """One entry per key; the count of steps is the same for all."""
    return [value] * len(stack.keys) if stack.bare or value.dim() == 0 else value.unbind(0)


def _whole(parts: Sequence[Tensor], stack: Stacked) -> Tensor:
    value = parts[0] if stack.bare else torch.stack(list(parts))
    return value.to(stack.parameter.device, copy=True)
