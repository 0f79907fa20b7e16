"""Self- and cross-attention, plain and differential, with QK-norm; kernels are replaceable per network.

Shape letters: ARCHITECTURE.md. Fused projections end in O (all their parts side by side); W = H * D.
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
    """Scaled dot-product attention in which padding keys get no softmax mass; PyTorch's own kernels, on any device."""
    mask = None if valid is None else (valid[:, None, None, :] if valid.dim() == 2 else valid[:, None])
    return F.scaled_dot_product_attention(query_BHND, key_BHSD, value_BHSD, attn_mask=mask)


def replace_attention(network: nn.Module, function: AttentionFunction) -> None:
    """Make every attention layer of `network` call `function`; the default is `masked_attention`."""
    for module in network.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.attention = function


def replace_differential_attention(network: nn.Module, function: DifferentialAttentionFunction | None) -> None:
    """Make every differential attention layer of `network` compute both maps in one call of `function`.

    Args:
        function: None restores the default, which calls the attention function of the layer for both maps.
    """
    for module in network.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.fused_differential = function if module.differential else None


def replace_heads(network: nn.Module, make: HeadsFunction) -> None:
    """Make every attention layer of `network` split its projections with `make`; the default is `eager_heads`."""
    for module in network.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.heads = make


MakeNorm = Callable[[int], nn.Module]
"""Builds the norm of queries or keys (QK-norm) over the D features of a head."""


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary position embedding, optionally differential and optionally banded.

    Differential attention subtracts a second attention map with its own queries and keys (after Ye et al. 2024,
    arXiv:2410.05258, but with weight 1: no lambda and no norm per head); `to_qkv` then holds q, k, v, q', k'.
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
        """`window`: how many tokens before and after itself a query attends to; None = all."""
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
        """Copies of the value heads: one per map, unless one kernel computes both maps."""
        fused = self.fused_differential is not None and self.window is None
        return 2 if self.differential and not fused else 1

    def forward(self, token_BNW: Tensor, rotary: RotaryAngles, valid_BN: Tensor | None = None) -> Tensor:
        """(B, N, W). `valid_BN` is True where a token may be attended to; a banded layer ignores it."""
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
    """Multi-head cross-attention to the context, without position embedding or mask.

    Differential: `to_q` holds q, q'; `to_kv` holds k, k', v.
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
        """Copies of the value heads: one per map, unless one kernel computes both maps."""
        return 2 if self.differential and self.fused_differential is None else 1

    def forward(self, token_BNW: Tensor, key_value_BSO: Tensor) -> Tensor:
        """(B, N, W).

        Args:
            key_value_BSO: `to_kv` of the context; the caller computes it, since it does not depend on the tokens.
        """
        norms = (self.q_norm, self.k_norm)
        query = self.heads(self.to_q(token_BNW), self.query_roles, self.num_heads, *norms, None, self.value_copies)[0]
        _, key, value = self.heads(key_value_BSO, self.context_roles, self.num_heads, *norms, None, self.value_copies)
        assert query is not None and key is not None and value is not None, "the projections have all three"
        if self.fused_differential is not None:
            return self.to_out(self.fused_differential(query, key, value, None))
        out_BHND = self.attention(query, key, value, None)
        return self.to_out(merged_heads(difference(out_BHND) if self.differential else out_BHND))


def difference(maps_BHND: Tensor) -> Tensor:
    """Heads of the first map minus those of the second."""
    first_BHND, second_BHND = maps_BHND.chunk(2, dim=1)
    return first_BHND - second_BHND


def merged_heads(head_BHND: Tensor) -> Tensor:
    """Heads concatenated: (B, N, H * D)."""
    return head_BHND.transpose(1, 2).flatten(2)
