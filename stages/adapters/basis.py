"""First axis of the adapter kinds: low-rank factors that are trained freely, or lie between singular vectors.

Each basis is a module whose parameters carry the names of the file format; `term` gives its low-rank update. Once
stacked (`stacked_adapter`), the same modules hold parameters with a leading dimension for layers.
Letters: O output features, I input features, R rank, K singular vectors kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.adapters.factored_weight import LowRankTerm, wide_dtype
from stages.adapters.ops.frozen_matmul import frozen_tall_product
from stages.adapters.singular_vectors import SingularVectors


@dataclass(frozen=True, kw_only=True)
class LayerInit:
    """What the basis and the magnitude of one layer's adapter are initialised from."""

    weight_OI: Tensor
    """The frozen weight as the layer uses it, after the base-precision cast."""
    rank: int
    dropout: float = 0.0
    generator: torch.Generator | None = None
    """Draws the initial A; None: torch's global CPU generator."""
    singular_vectors: SingularVectors | None = None
    """Leading singular vectors of the weight, at least `rank` of them; needed by `SvdBasis`."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of parameters and norms: float32 for a weight of float32 or less."""
        return wide_dtype(self.weight_OI)


class FreeBasis(nn.Module):
    """L R = s B A. A is Kaiming-uniform with a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in)); B is zero.

    A is drawn on the generator's device (the CPU by default) and then moved: one seed gives one A on every device.

    Dropout: in training, A is multiplied by one dropout mask over the input features, drawn anew for every evaluation
    of the weight and shared by all tokens. It comes from torch's global generator of the parameter's device: a trainer
    seeds and restores that one, and activation checkpointing replays it, so a recomputed layer sees the same mask.
    """

    depends_on_weight = False
    """Whether `cache_products` must be called for the weight, and again when that changes."""

    def __init__(self, init: LayerInit, *, needs_weight_right: bool, needs_left_weight: bool) -> None:
        super().__init__()
        num_out, num_in = init.weight_OI.shape
        device = init.generator.device if init.generator is not None else torch.device("cpu")
        A_RI = torch.empty(init.rank, num_in, dtype=init.dtype, device=device)
        A_RI.uniform_(-(num_in**-0.5), num_in**-0.5, generator=init.generator)
        self.dropout = init.dropout
        self.fixed_mask_1I: Tensor | None = None
        """A dropout mask to use instead of drawing one for every evaluation."""
        self.lora_A = nn.Parameter(A_RI.to(init.weight_OI.device))
        self.lora_B = nn.Parameter(torch.zeros(num_out, init.rank, dtype=init.dtype, device=init.weight_OI.device))

    def term(self, scaling: float) -> LowRankTerm:
        """The update with L = scaling B and R = A, its dropout mask applied."""
        A_RI: Tensor = self.lora_A
        if self.training and self.dropout > 0:
            A_RI = A_RI * (self._new_mask() if self.fixed_mask_1I is None else self.fixed_mask_1I)
        # scaling is 1 where alpha is the rank: no product, and no copy of B.
        return LowRankTerm(left_OR=self.lora_B if scaling == 1 else scaling * self.lora_B, right_RI=A_RI)

    def _new_mask(self) -> Tensor:
        return F.dropout(torch.ones_like(self.lora_A[..., :1, :]), self.dropout)


class SvdBasis(nn.Module):
    """L R = s U M Z^T between frozen singular vectors U, Z of the weight; M starts at zero.

    U and Z never change, so neither do W Z and U^T W, which are cached: norms need no pass over W, except where row
    scales have been applied to it first.
    """

    depends_on_weight = True
    """Whether `cache_products` must be called for the weight, and again when that changes."""

    U: Tensor
    V: Tensor
    weight_V: Tensor | None
    U_weight: Tensor | None

    def __init__(self, init: LayerInit, *, needs_weight_right: bool, needs_left_weight: bool) -> None:
        super().__init__()
        vectors = init.singular_vectors
        assert vectors is not None, "attach computes the singular vectors of every targeted layer"
        device, dtype, rank = init.weight_OI.device, init.dtype, init.rank
        self._needs = needs_weight_right, needs_left_weight
        self.register_buffer("U", vectors.U_OK[:, :rank].to(device, dtype).contiguous(), persistent=False)
        self.register_buffer("V", vectors.V_IK[:, :rank].to(device, dtype).contiguous(), persistent=False)
        self.register_buffer("weight_V", None, persistent=False)
        self.register_buffer("U_weight", None, persistent=False)
        self.M_xs = nn.Parameter(torch.zeros(rank, rank, dtype=dtype, device=device))

    def cache_products(self, weight_OI: Tensor) -> None:
        """Compute W Z (out, rank) and U^T W (rank, in) for this weight, as far as the magnitude needs them."""
        needs_weight_right, needs_left_weight = self._needs
        wide_OI = weight_OI.detach().to(self.U.dtype)
        self.weight_V = wide_OI @ self.V if needs_weight_right else None
        self.U_weight = self.U.mT @ wide_OI if needs_left_weight else None

    def term(self, scaling: float) -> LowRankTerm:
        """The update with L = U (scaling M) and R = Z^T."""
        core_RR = scaling * self.M_xs
        return LowRankTerm(
            left_OR=frozen_tall_product(self.U, core_RR),
            right_RI=self.V.mT,
            weight_right_OR=self.weight_V,
            left_weight_RI=None if self.U_weight is None else core_RR.mT @ self.U_weight,
        )
