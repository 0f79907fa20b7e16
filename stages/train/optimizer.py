"""AdamW on the adapter's fp32 parameters, which refuses an update that is not finite without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stages.train.stage import TrainParams

_GUARDED_DEVICES = ("cpu", "cuda")
"""Where torch's fused AdamW takes a flag, on the device, that makes it leave everything as it is."""

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """Decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101) on every adapter tensor, magnitudes included.

    Once a loss or gradient is not finite, `broken` is set and no later update is applied: parameters and moments stay
    as they were before that step, however late the host looks.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], params: TrainParams) -> None:
        self.parameters = dict(parameters)
        device = next(iter(self.parameters.values())).device
        self.adamw = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=params.learning_rate,
            betas=params.betas,
            eps=params.eps,
            weight_decay=params.weight_decay,
            fused=True if device.type in _GUARDED_DEVICES else None,
        )
        self.guarded = device.type in _GUARDED_DEVICES
        self.broken = torch.zeros((), dtype=torch.bool, device=device)

    def update(self, loss: Tensor, scale: float = 1.0) -> Tensor:
        """One step along the gradient of `loss`; returns the norm of that gradient, a 0-d tensor on the device.

        Args:
            scale: the backward pass runs on loss * scale; gradients are divided by it.
        """
        (loss * scale).backward()
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        if scale != 1.0:
            torch._foreach_mul_(gradients, 1.0 / scale)
        norm = nn.utils.get_total_norm(gradients)
        self.broken = self.broken | ~(torch.isfinite(norm) & torch.isfinite(loss.detach()))
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
        self.broken = torch.zeros_like(self.broken)

    def state(self) -> dict[str, Tensor]:
        """CPU copies of the moments: `exp_avg.<parameter>`, `exp_avg_sq.<parameter>`, `step.<parameter>`."""
        return {
            f"{moment}.{name}": value.detach().to("cpu", copy=True)
            for name, parameter in self.parameters.items()
            for moment, value in self.adamw.state.get(parameter, {}).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take moments back, exactly as `state` gave them."""
        for name, parameter in self.parameters.items():
            if f"step.{name}" in state:
                moments = {moment: state[f"{moment}.{name}"].to(parameter.device, copy=True) for moment in _MOMENTS}
                step = state[f"step.{name}"].to(parameter.device if self.guarded else "cpu", copy=True)
                self.adamw.state[parameter] = {"step": step, **moments}
