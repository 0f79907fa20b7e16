"""Attention as torch's compiler writes it: for compiled networks on CUDA.

Its backward adds up in a fixed order without the detour that the ordered form of the hand-written kernels takes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

_ONE_BLOCK = 1 << 30
"""A block that holds every length: how the compiler knows that no block is left out."""


class FlexAttention:
    """An `AttentionFunction` for keys that all queries may see alike, `valid` (B, S); inside a compiled block."""

    def __init__(self, device: torch.device) -> None:
        # Made anew in every block it would cost ten launches each.
        self.full_block_mask = BlockMask.from_kv_blocks(
            kv_num_blocks=torch.ones(1, 1, 1, dtype=torch.int32, device=device),
            kv_indices=torch.zeros(1, 1, 1, 1, dtype=torch.int32, device=device),
            BLOCK_SIZE=_ONE_BLOCK,
            seq_lengths=(1, 1),
        )

    def __call__(self, query_BHND: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, valid: Tensor | None) -> Tensor:
        heads = (query_BHND, key_BHSD, value_BHSD)
        if valid is None:
            out: Tensor = flex_attention(*heads, block_mask=self.full_block_mask)
            return out

        def unseen_dropped(score: Tensor, item: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return torch.where(valid[item, key], score, -float("inf"))

        masked: Tensor = flex_attention(*heads, score_mod=unseen_dropped, block_mask=self.full_block_mask)
        return masked
