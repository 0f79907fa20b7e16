"""Muon on the matrices of the layers, AdamW on everything else, and a moving average; steps fit a CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
BETAS = (0.9, 0.98)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al. 2024, the Muon optimizer)."""
ITERATIONS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, of a stack (L, rows, columns); in bfloat16 on CUDA."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    is_wide = x.shape[1] <= x.shape[2]
    x = x if is_wide else x.mT
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if is_wide else x.mT).float()


class MuonAdamW:
    """Updates the parameters of a network; `matrices` among them by Muon, stacked by shape."""

    def __init__(self, parameters: Sequence[Tensor], matrices: Sequence[Tensor], *, lr: float, muon_lr: float) -> None:
        by_muon = {id(matrix) for matrix in matrices}
        device = parameters[0].device
        self.parameters = list(parameters)
        self.base = (lr, muon_lr)
        self.lr, self.muon_lr = torch.tensor(lr, device=device), torch.tensor(muon_lr, device=device)
        on_cuda: dict[str, Any] = {"fused": True, "capturable": True} if device.type == "cuda" else {}
        rest = [parameter for parameter in parameters if id(parameter) not in by_muon]
        self.adam = torch.optim.AdamW(rest, lr=self.lr, betas=BETAS, weight_decay=0.0, **on_cuda)
        stacks: dict[tuple[int, ...], list[Tensor]] = {}
        for matrix in matrices:
            stacks.setdefault(tuple(matrix.shape), []).append(matrix)
        self.stacks = list(stacks.values())
        self.momenta = [torch.zeros(len(stack), *stack[0].shape, device=device) for stack in self.stacks]

    def set_rate(self, share: float) -> None:
        """Learning rates as a share of their highest."""
        self.lr.fill_(self.base[0] * share)
        self.muon_lr.fill_(self.base[1] * share)

    def clear_gradients(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, largest_norm: float = 1.0) -> Tensor:
        """Clip the gradients to a total norm, update; returns the norm before clipping."""
        gradients = [_gradient(parameter) for parameter in self.parameters]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        torch._foreach_mul_(gradients, (largest_norm / (norm + 1e-6)).clamp(max=1.0))
        self.adam.step()
        for stack, momentum in zip(self.stacks, self.momenta, strict=True):
            self._muon(stack, momentum)
        return norm

    def _muon(self, stack: list[Tensor], momentum: Tensor) -> None:
        gradient = torch.stack([_gradient(matrix) for matrix in stack])
        momentum.lerp_(gradient, 1 - MOMENTUM)
        rows, columns = momentum.shape[1:]
        update = orthogonalised(gradient.lerp(momentum, MOMENTUM)) * (self.muon_lr * max(1.0, rows / columns) ** 0.5)
        torch._foreach_sub_(stack, list(update.unbind()))

    def state(self) -> dict[str, Any]:
        """Everything but the learning rates, which the schedule sets."""
        return {"adam": self.adam.state_dict()["state"], "momenta": self.momenta}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        groups = self.adam.state_dict()["param_groups"]
        self.adam.load_state_dict({"state": state["adam"], "param_groups": groups})
        # Loading makes the learning rate a copy; the schedule writes into ours.
        self.adam.param_groups[0]["lr"] = self.lr
        for momentum, stored in zip(self.momenta, state["momenta"], strict=True):
            momentum.copy_(stored)


class MovingAverage:
    """Exponential moving average of parameters."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.average = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def follow(self) -> None:
        """Take in the present values."""
        torch._foreach_lerp_(self.average, self.parameters, 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the present values; a second call undoes the first."""
        for average, parameter in zip(self.average, self.parameters, strict=True):
            present = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(present)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "every parameter takes part in the loss"
    return parameter.grad
