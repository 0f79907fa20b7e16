"""The first axis of the adapter kinds: where the low-rank directions of a move come from.

Each is a small module whose parameters carry the names of the file format.
Letters: O out features, I in features, R rank. What they compute allows leading dimensions, as `factored_weight` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.adapters.factored_weight import Term, wide_dtype
from stages.adapters.ops.frozen_matmul import tall_times
from stages.adapters.singular_vectors import Bases


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a new part of one layer's adapter is made from."""

    weight_OI: Tensor
    """The frozen weight as the layer uses it, after the base-precision cast."""
    rank: int
    dropout: float = 0.0
    generator: torch.Generator | None = None
    """Draws the start of A; None: torch's global CPU generator."""
    bases: Bases | None = None
    """Leading singular vectors of the weight, at least `rank` of them."""

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and norms: float32 for a weight of float32 or less."""
        return wide_dtype(self.weight_OI)


class FreeBasis(nn.Module):
    """L R = s B A. A is Kaiming-uniform with a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in)); B is zero.

    A is drawn on the generator's device (the CPU by default) and then moved: one seed, one start, on every device.

    Dropout: in training, A is multiplied by one dropout mask over the input features, drawn anew for every evaluation
    of the weight and shared by all tokens. It comes from torch's global generator of the parameter's device: a trainer
    seeds and restores that one, and activation checkpointing replays it, so a recomputed layer sees the same mask.
    """

    knows_weight = False
    """Nothing here depends on the weight's values."""

    def __init__(self, start: Start, *, uses_weight_right: bool, uses_left_weight: bool) -> None:
        super().__init__()
        num_out, num_in = start.weight_OI.shape
        device = start.generator.device if start.generator is not None else torch.device("cpu")
        A_RI = torch.empty(start.rank, num_in, dtype=start.dtype, device=device)
        A_RI.uniform_(-(num_in**-0.5), num_in**-0.5, generator=start.generator)
        self.dropout = start.dropout
        self.mask_1I: Tensor | None = None
        """A dropout mask drawn beforehand, instead of one for every evaluation."""
        self.lora_A = nn.Parameter(A_RI.to(start.weight_OI.device))
        self.lora_B = nn.Parameter(torch.zeros(num_out, start.rank, dtype=start.dtype, device=start.weight_OI.device))

    def term(self, scaling: float) -> Term:
        """L = scaling B, R = A (with its dropout mask)."""
        A_RI: Tensor = self.lora_A
        if self.training and self.dropout > 0:
            A_RI = A_RI * (self._new_mask() if self.mask_1I is None else self.mask_1I)
        # A whole pass over it is saved where alpha is the rank.
        return Term(left_OR=self.lora_B if scaling == 1 else scaling * self.lora_B, right_RI=A_RI)

    def _new_mask(self) -> Tensor:
        return F.dropout(torch.ones_like(self.lora_A[..., :1, :]), self.dropout)


class SvdBasis(nn.Module):
    """L R = s U M Z^T between frozen singular vectors U, Z of the weight; M is zero at the start.

    U and Z never change, so neither do W Z and U^T W: norms need no pass over W, unless rows weight the columns.
    """

    knows_weight = True
    """`keep_products` must be called for the weight, and again when that changes."""

    U: Tensor
    V: Tensor
    weight_V: Tensor | None
    U_weight: Tensor | None

    def __init__(self, start: Start, *, uses_weight_right: bool, uses_left_weight: bool) -> None:
        super().__init__()
        assert start.bases is not None, "attach computes the singular vectors of every targeted layer"
        device, dtype, rank = start.weight_OI.device, start.dtype, start.rank
        self._uses = uses_weight_right, uses_left_weight
        self.register_buffer("U", start.bases.U_OK[:, :rank].to(device, dtype).contiguous(), persistent=False)
        self.register_buffer("V", start.bases.V_IK[:, :rank].to(device, dtype).contiguous(), persistent=False)
        self.register_buffer("weight_V", None, persistent=False)
        self.register_buffer("U_weight", None, persistent=False)
        self.M_xs = nn.Parameter(torch.zeros(rank, rank, dtype=dtype, device=device))

    def keep_products(self, weight_OI: Tensor) -> None:
        """Compute W Z (out, rank) and U^T W (rank, in), those of them that the magnitudes need, for this weight."""
        uses_weight_right, uses_left_weight = self._uses
        wide_OI = weight_OI.detach().to(self.U.dtype)
        self.weight_V = wide_OI @ self.V if uses_weight_right else None
        self.U_weight = self.U.mT @ wide_OI if uses_left_weight else None

    def term(self, scaling: float) -> Term:
        """L = U (scaling M), R = Z^T."""
        core_RR = scaling * self.M_xs
        return Term(
            left_OR=tall_times(self.U, core_RR),
            right_RI=self.V.mT,
            weight_right_OR=self.weight_V,
            left_weight_RI=None if self.U_weight is None else core_RR.mT @ self.U_weight,
        )
