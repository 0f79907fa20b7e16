"""Attention as torch's compiler writes it: for compiled networks on CUDA.

Its backward adds up in a fixed order without the detour that the ordered form of the hand-written kernels takes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention


def fused_attention(query_BHND: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, valid: Tensor | None) -> Tensor:
    """An `AttentionFunction` for keys that all queries may see alike, `valid` (B, S); inside a compiled block."""
    if valid is None:
        out: Tensor = flex_attention(query_BHND, key_BHSD, value_BHSD)
        return out

    def unseen_dropped(score: Tensor, item: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.where(valid[item, key], score, -float("inf"))

    masked: Tensor = flex_attention(query_BHND, key_BHSD, value_BHSD, score_mod=unseen_dropped)
    return masked
