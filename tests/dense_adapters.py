"""Adapted weights built densely by their formulas, which the factored evaluation is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from stages.adapters.kind import BOTH, INPUT, NONE, OUTPUT, SVD, kind_named

EPS = 1e-12
Leaves = Mapping[str, Tensor]


def free(leaves: Leaves, weight_OI: Tensor) -> Tensor:
    return leaves["lora_B"] @ leaves["lora_A"]


def between_singular_vectors(leaves: Leaves, weight_OI: Tensor) -> Tensor:
    """U M Z^T, U and Z from the float32 SVD of the base weight, the largest entry of each column of U positive."""
    rank = leaves["M_xs"].shape[0]
    U, _, Vh = torch.linalg.svd(weight_OI.float(), full_matrices=False)
    for column in range(U.shape[1]):
        if U[U[:, column].abs().argmax(), column] < 0:
            U[:, column] *= -1
            Vh[column] *= -1
    return U[:, :rank].to(weight_OI) @ leaves["M_xs"] @ Vh[:rank].to(weight_OI)


def unscaled(updated_OI: Tensor, leaves: Leaves) -> Tensor:
    return updated_OI


def rows(updated_OI: Tensor, leaves: Leaves, name: str = "magnitude") -> Tensor:
    return leaves[name][:, None] * updated_OI / (updated_OI.norm(dim=1, keepdim=True) + EPS)


def columns(updated_OI: Tensor, leaves: Leaves, name: str = "magnitude") -> Tensor:
    return leaves[name][None] * updated_OI / (updated_OI.norm(dim=0, keepdim=True) + EPS)


def rows_then_columns(updated_OI: Tensor, leaves: Leaves) -> Tensor:
    return columns(rows(updated_OI, leaves, "magnitude_r"), leaves, "magnitude_c")


Formula = tuple[Callable[..., Tensor], Callable[..., Tensor]]
"""L R from the leaves of a file, and W' from V."""
FORMULAS: dict[str, Formula] = {
    "lora": (free, unscaled),
    "dora": (free, rows),
    "dora-rows": (free, rows),
    "dora-cols": (free, columns),
    "bora": (free, rows_then_columns),
    "lora-xs": (between_singular_vectors, unscaled),
    "dora-rows-xs": (between_singular_vectors, rows),
    "dora-cols-xs": (between_singular_vectors, columns),
    "bora-xs": (between_singular_vectors, rows_then_columns),
}
"""Formulas of the reference's kinds, by name."""


def formula(kind: str) -> Formula:
    """The formula of a kind: by its name if the reference has it, else by the axes that its file names."""
    if kind in FORMULAS:
        return FORMULAS[kind]
    axes = kind_named(kind)
    update = between_singular_vectors if axes.basis == SVD else free
    return update, {NONE: unscaled, OUTPUT: rows, INPUT: columns, BOTH: rows_then_columns}[axes.magnitude]


def dense(kind: str, below_OI: Tensor, leaves: Leaves, scaling: float, base_OI: Tensor | None = None) -> Tensor:
    """W' of one adapter on `below_OI`; `base_OI` is the frozen weight, where `below_OI` has another adapter in it."""
    update, rescale = formula(kind)
    updated_OI = below_OI + scaling * update(leaves, below_OI if base_OI is None else base_OI)
    return rescale(updated_OI, leaves)


class Net(nn.Module):
    """A small network of the layers that matter here: Linear with and without bias, a Conv1d of kernel 1, a norm."""

    def __init__(self, num_in: int = 7, width: int = 6, num_out: int = 5) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(num_in, width), nn.Tanh(), nn.Linear(width, width, bias=False))
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, num_out, 1)
        self.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.norm(self.inner(tokens))
        return self.conv(hidden.transpose(-1, -2)).transpose(-1, -2)


NET_LAYERS = ("inner.0", "inner.2", "conv")


def dense_forward(net: nn.Module, tokens: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The network's output with some of its weights replaced by these matrices."""
    own = net.state_dict()
    full = {f"{name}.weight": matrix.reshape(own[f"{name}.weight"].shape) for name, matrix in weights.items()}
    return torch.func.functional_call(net, full, (tokens,))


def shake(parameters: Mapping[str, Tensor], generator: torch.Generator) -> None:
    """Replace initial values by random ones; magnitudes stay positive."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            noise = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
            parameter.copy_(parameter * (1 + 0.3 * noise.tanh()) if "magnitude" in name else 0.4 * noise)


def leaves_of(parameters: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    """The tensors of one layer by leaf name."""
    prefix = f"{layer}.parametrizations.weight.0."
    return {key.removeprefix(prefix): tensor for key, tensor in parameters.items() if key.startswith(prefix)}
