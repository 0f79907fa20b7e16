"""Call signatures of replaceable attention functions: one attention map, and differential attention as a whole."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class AttentionFunction(Protocol):
    """Scaled dot-product attention, softmax(q k^T / sqrt(D)) v, over the keys that are not masked.

    Args:
        query_BHND, key_BHSD, value_BHSD: heads after QK-norm and rotary embedding.
        valid: bool, True where a key may be attended to: (B, S), or (B, N, S) for a mask per query; None = everywhere.

    Returns:
        (B, H, N, D).
    """

    def __call__(self, query_BHND: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, valid: Tensor | None) -> Tensor: ...


class DifferentialAttentionFunction(Protocol):
    """Differential attention in one call: the output of the first map minus that of the second.

    Args:
        query_BGND, key_BGSD: heads of the first map, then of the second, after QK-norm and rotary embedding.
        value_BHSD: value heads, shared by both maps.
        valid_BS: bool, True where a key may be attended to; None = everywhere.

    Returns:
        (B, N, W), heads concatenated.
    """

    def __call__(self, query_BGND: Tensor, key_BGSD: Tensor, value_BHSD: Tensor, valid_BS: Tensor | None) -> Tensor: ...
