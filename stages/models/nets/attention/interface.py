"""What an attention function takes and returns, for one map and for differential attention as a whole.

B batch, N queries, S keys, D width of a head, H heads, G heads of both maps, W width of the model.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class AttentionFunction(Protocol):
    """softmax(q k^T / sqrt(D)) v over the keys that may be seen.

    Args:
        query_BHND, key_BHSD, value_BHSD: heads, already normed and rotated.
        valid: bool, True where a key may be seen: (B, S), or (B, N, S) where that differs between queries; None = all.
    """

    def __call__(self, query_BHND: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, valid: Tensor | None) -> Tensor: ...


class DifferentialAttentionFunction(Protocol):
    """Differential attention whole: the first map's result less the second's, (B, N, W) with its heads merged.

    Args:
        query_BGND, key_BGSD: heads of the first map, then of the second, normed and rotated.
        value_BHSD: of both maps.
        valid_BS: bool, True where a key may be seen; None = all.
    """

    def __call__(self, query_BGND: Tensor, key_BGSD: Tensor, value_BHSD: Tensor, valid_BS: Tensor | None) -> Tensor: ...
