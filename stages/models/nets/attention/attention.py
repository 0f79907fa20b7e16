"""Self- and cross-attention, plain and differential, around one replaceable attention function.

B batch, H heads, N queries, S keys, D features of a head, W width of a token (H * D).
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.nets.attention.banded import banded_attention
from stages.models.nets.attention.heads import KEY, QUERY, VALUE, HeadsFunction, eager_heads
from stages.models.nets.attention.interface import AttentionFunction, DifferentialAttentionFunction
from stages.models.nets.attention.rotary import RotaryAngles


def masked_attention(query_BHND: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, valid: Tensor | None) -> Tensor:
    """The product's attention: padding keys get no softmax mass at all. Torch's own kernels, any device."""
    mask = None if valid is None else (valid[:, None, None, :] if valid.dim() == 2 else valid[:, None])
    return F.scaled_dot_product_attention(query_BHND, key_BHSD, value_BHSD, attn_mask=mask)


def replace_attention(network: nn.Module, function: AttentionFunction) -> None:
    """Let every attention of `network` use `function`; `masked_attention` is what they are built with."""
    for module in network.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.attention = function


def replace_differential_attention(network: nn.Module, function: DifferentialAttentionFunction | None) -> None:
    """Let differential attention of `network` be one function; None, as it is built, attends with each map alone."""
    for module in network.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.fused_differential = function if module.differential else None


def replace_heads(network: nn.Module, make: HeadsFunction) -> None:
    """Let every attention of `network` make its heads so; `eager_heads` is what they are built with."""
    for module in network.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.heads = make


MakeNorm = Callable[[int], nn.Module]
"""A norm over the D features of a head."""


class SelfAttention(nn.Module):
    """Attention of tokens among themselves, with rotary positions.

    Differential attention subtracts a second map with its own queries and keys (after Ye et al. 2024, arXiv:2410.05258,
    with weight 1 and neither lambda nor a norm of its own); the fused projection then holds q, k, v, q', k'.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        make_norm: MakeNorm,
        *,
        differential: bool,
        window: tuple[int, int] | None = None,
    ) -> None:
        """`window`: how many tokens before and after itself a query sees; None = all."""
        super().__init__()
        self.num_heads, self.differential, self.window = num_heads, differential, window
        self.roles = (QUERY, KEY, VALUE, QUERY, KEY) if differential else (QUERY, KEY, VALUE)
        self.to_qkv = nn.Linear(width, len(self.roles) * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = make_norm(width // num_heads), make_norm(width // num_heads)
        self.attention: AttentionFunction = masked_attention
        self.fused_differential: DifferentialAttentionFunction | None = None
        self.heads: HeadsFunction = eager_heads

    @property
    def value_copies(self) -> int:
        """How often the values are needed side by side."""
        joint = self.fused_differential is not None and self.window is None
        return 2 if self.differential and not joint else 1

    def forward(self, token_BNW: Tensor, rotary: RotaryAngles, valid_BN: Tensor | None = None) -> Tensor:
        """(B, N, W). `valid_BN` True where a token may be looked at."""
        norms = (self.q_norm, self.k_norm)
        projected_BNO = self.to_qkv(token_BNW)
        query, key, value = self.heads(projected_BNO, self.roles, self.num_heads, *norms, rotary, self.value_copies)
        assert query is not None and key is not None and value is not None, "the projection has all three"
        if self.fused_differential is not None and self.window is None:
            return self.to_out(self.fused_differential(query, key, value, valid_BN))
        if self.window is not None:
            out_BHND = banded_attention(self.attention, query, key, value, self.window)
        else:
            out_BHND = self.attention(query, key, value, valid_BN)
        return self.to_out(merged_heads(difference(out_BHND) if self.differential else out_BHND))


class CrossAttention(nn.Module):
    """Attention of tokens to the context, without positions and without a mask.

    Differential: queries q, q' and, in this order, k, k', v.
    """

    def __init__(self, width: int, num_heads: int, make_norm: MakeNorm, *, differential: bool) -> None:
        super().__init__()
        self.num_heads, self.differential = num_heads, differential
        num_maps = 2 if differential else 1
        self.query_roles, self.context_roles = (QUERY,) * num_maps, (*(KEY,) * num_maps, VALUE)
        self.to_q = nn.Linear(width, num_maps * width, bias=False)
        self.to_kv = nn.Linear(width, (num_maps + 1) * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = make_norm(width // num_heads), make_norm(width // num_heads)
        self.attention: AttentionFunction = masked_attention
        self.fused_differential: DifferentialAttentionFunction | None = None
        self.heads: HeadsFunction = eager_heads

    @property
    def value_copies(self) -> int:
        """How often the values are needed side by side."""
        return 2 if self.differential and self.fused_differential is None else 1

    def forward(self, token_BNW: Tensor, key_value_BSF: Tensor) -> Tensor:
        """(B, N, W) from tokens (B, N, W) and what `to_kv` makes of the context, which no token changes."""
        norms = (self.q_norm, self.k_norm)
        query = self.heads(self.to_q(token_BNW), self.query_roles, self.num_heads, *norms, None, self.value_copies)[0]
        _, key, value = self.heads(key_value_BSF, self.context_roles, self.num_heads, *norms, None, self.value_copies)
        assert query is not None and key is not None and value is not None, "the projections have all three"
        if self.fused_differential is not None:
            return self.to_out(self.fused_differential(query, key, value, None))
        out_BHND = self.attention(query, key, value, None)
        return self.to_out(merged_heads(difference(out_BHND) if self.differential else out_BHND))


def difference(maps_BHND: Tensor) -> Tensor:
    """The first map's heads minus the second's."""
    first_BHND, second_BHND = maps_BHND.chunk(2, dim=1)
    return first_BHND - second_BHND


def merged_heads(head_BHND: Tensor) -> Tensor:
    """(B, N, H * D)."""
    return head_BHND.transpose(1, 2).flatten(2)
