"""Attention in a band around each token without an N x N mask: blocks of queries, with the keys their band can reach.

B batch, H heads, N tokens, D features of a head, G blocks, Q queries of a block, S keys of a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from stages.models.nets.attention.interface import AttentionFunction

KEYS_PER_BLOCK = 96
"""Small blocks copy each key more often, large ones compute more that the mask drops; kernels want a multiple of 8."""


def banded_attention(
    attention: AttentionFunction, query_BHND: Tensor, key_BHND: Tensor, value_BHND: Tensor, window: tuple[int, int]
) -> Tensor:
    """(B, H, N, D): each query sees the keys from `window[0]` before it to `window[1]` after it, ends clipped.

    Memory and work are linear in N.
    """
    batch, num_heads, num_tokens, _ = query_BHND.shape
    size = min(max(KEYS_PER_BLOCK - sum(window), sum(window)), num_tokens)
    num_blocks = -(-num_tokens // size)
    filling = num_blocks * size - num_tokens
    query_block = _blocks(F.pad(query_BHND, (0, 0, 0, filling)), size, size)
    around = (0, 0, window[0], window[1] + filling)
    key_block, value_block = (_blocks(F.pad(side, around), size + sum(window), size) for side in (key_BHND, value_BHND))
    seen_GQS = band_mask(num_tokens, size, window, query_BHND.device)
    out_block = attention(query_block, key_block, value_block, seen_GQS.repeat(batch, 1, 1))
    out_BGHQD = out_block.unflatten(0, (batch, num_blocks))
    return out_BGHQD.transpose(1, 2).reshape(batch, num_heads, num_blocks * size, -1)[:, :, :num_tokens]


def band_mask(num_tokens: int, size: int, window: tuple[int, int], device: torch.device) -> Tensor:
    """(G, Q, S) bool: in block g, query q stands at g * size + q, key s at g * size + s - window[0]."""
    block_G = torch.arange(-(-num_tokens // size), device=device)[:, None, None] * size
    query_Q = torch.arange(size, device=device)[:, None]
    key_S = torch.arange(size + sum(window), device=device) - window[0]
    near_QS = (key_S >= query_Q - window[0]) & (key_S <= query_Q + window[1])
    exists_GQS = (block_G + key_S >= 0) & (block_G + key_S < num_tokens)
    # Queries beyond the end only fill up the last block; they may see anything, or their softmax would be empty.
    return near_QS & (exists_GQS | (block_G + query_Q >= num_tokens))


def _blocks(side_BHND: Tensor, size: int, hop: int) -> Tensor:
    """(B * G, H, size, D): windows of `size` tokens, one every `hop`."""
    return side_BHND.unfold(2, size, hop).permute(0, 2, 1, 4, 3).flatten(0, 1)
