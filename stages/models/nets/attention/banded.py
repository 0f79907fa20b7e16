"""Banded (sliding-window) attention in linear memory: blocks of queries, each with the keys their band reaches.

Within a block, N counts its queries and S its keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.nets.attention.interface import AttentionFunction

KEYS_PER_BLOCK = 96
"""Smaller blocks copy each key more often, larger ones compute more scores that the mask drops; a multiple of 8 suits
attention kernels."""


def banded_attention(
    attention: AttentionFunction, query_BHND: Tensor, key_BHND: Tensor, value_BHND: Tensor, window: tuple[int, int]
) -> Tensor:
    """(B, H, N, D): each query attends to the keys from `window[0]` before it to `window[1]` after it, ends clipped.

    Memory and work are linear in N.
    """
    batch, num_heads, num_tokens, _ = query_BHND.shape
    size = min(max(KEYS_PER_BLOCK - sum(window), sum(window)), num_tokens)
    num_blocks = -(-num_tokens // size)
    padding = num_blocks * size - num_tokens
    query_block = _blocks(F.pad(query_BHND, (0, 0, 0, padding)), size, size)
    around = (0, 0, window[0], window[1] + padding)
    key_block, value_block = (_blocks(F.pad(side, around), size + sum(window), size) for side in (key_BHND, value_BHND))
    visible = band_mask(num_tokens, size, window, query_BHND.device)
    out_block = attention(query_block, key_block, value_block, visible.repeat(batch, 1, 1))
    out = out_block.unflatten(0, (batch, num_blocks))
    return out.transpose(1, 2).reshape(batch, num_heads, num_blocks * size, -1)[:, :, :num_tokens]


def band_mask(num_tokens: int, size: int, window: tuple[int, int], device: torch.device) -> Tensor:
    """(blocks, N, S) bool, True where a query attends to a key.

    In block b, query n is token b * size + n, and key s is token b * size + s - window[0].
    """
    block_start = torch.arange(-(-num_tokens // size), device=device)[:, None, None] * size
    query_N = torch.arange(size, device=device)[:, None]
    key_S = torch.arange(size + sum(window), device=device) - window[0]
    near = (key_S >= query_N - window[0]) & (key_S <= query_N + window[1])
    exists = (block_start + key_S >= 0) & (block_start + key_S < num_tokens)
    # Queries past the end pad the last block; they may see any key, or their softmax would be empty.
    return near & (exists | (block_start + query_N >= num_tokens))


def _blocks(side_BHND: Tensor, size: int, hop: int) -> Tensor:
    """(B * blocks, H, size, D): windows of `size` tokens, one every `hop`."""
    return side_BHND.unfold(2, size, hop).permute(0, 2, 1, 4, 3).flatten(0, 1)
