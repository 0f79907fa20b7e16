"""FlexAttention, whose kernels torch.compile generates: deterministic attention for compiled networks on CUDA.

Its backward sums in a fixed order, without the slower deterministic mode that PyTorch's hand-written kernels need.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

_ONE_BLOCK = 1 << 30
"""A block size above every length: tells the compiler that no block is skipped."""


class FlexAttention:
    """An `AttentionFunction` for use inside a compiled block; its mask is per key, `valid` (B, S)."""

    def __init__(self, device: torch.device) -> None:
        # Built once: in every transformer block it would cost ten kernel launches.
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

        def mask_padding(score: Tensor, item: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return torch.where(valid[item, key], score, -float("inf"))

        masked: Tensor = flex_attention(*heads, score_mod=mask_padding, block_mask=self.full_block_mask)
        return masked
