"""Fused linear layers with an adapter, for one layer or a stack: y = p (W x + b + L A x) + (1 - p) b.

Or, gated, a silu(g) with [a; g] = y, as SwiGLU feed-forward layers need it, without y in memory (Shazeer 2020,
arXiv:2002.05202).

The right factor A is stored behind the rows of W, the joined weight [W; A]: one product gives W x and A x, and in the
backward one product with [dy, dh] gives the gradient of x. Between and after these products there is one kernel each.
Custom operators, so torch.compile does not look inside.

Letters: L layers of one shape, M tokens, I input features, O output features, R rank, J = O + width rows of the joined
weight; `num_factor_rows` gives the width, and rows beyond R are zero. Rows have `padded_length` columns, zero beyond I.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.adapters.ops.side_streams import DeferredWork, defer_or_run

if TYPE_CHECKING:
    from stages.adapters.ops.kernels.fused_linear import OutputGradients

NAME = "sa3_trainer::joined_product"
MAX_RANK = 64
MAX_PRODUCT_VALUES = 1 << 31
"""Values of a layer's joined product from which 32-bit offsets in the kernels would overflow."""
_MIN_TILE = 16
"""Smallest dimension of a matrix product in Triton."""
_ALIGNMENT = 8
"""16-bit values in 16 bytes, the widest load."""


def num_factor_rows(rank: int) -> int:
    """Rows to allocate behind W for a factor of this rank: a power of two, as Triton's tiles are."""
    return max(_MIN_TILE, 1 << (rank - 1).bit_length())


def padded_length(num_in: int) -> int:
    """Columns to allocate for rows of so many features: a multiple of 8, which aligns rows for wide loads."""
    return -(-num_in // _ALIGNMENT) * _ALIGNMENT


def has_kernels(product_LMJ: Tensor) -> bool:
    """Whether the Triton kernels take this joined product."""
    return product_LMJ.is_cuda and product_LMJ[0].numel() < MAX_PRODUCT_VALUES


def joined_product(
    tokens: Tensor,
    joined_JI: Tensor,
    left_OR: Tensor,
    right_RI: Tensor,
    p_O: Tensor | None,
    bias_J: Tensor | None,
    *,
    gated: bool = False,
) -> Tensor:
    """One layer of `joined_products`: (..., O), or gated (..., O / 2), from tokens (..., I)."""
    factors = (None if one is None else one[None] for one in (left_OR, right_RI, p_O, bias_J))
    out_1MO = joined_products(tokens.reshape(1, -1, tokens.shape[-1]), joined_JI[None], *factors, gated=gated)
    return out_1MO.view(*tokens.shape[:-1], out_1MO.shape[-1])


def joined_products(tokens_LMI: Tensor, joined_LJI: Tensor, *factors: Tensor | None, gated: bool = False) -> Tensor:
    """Outputs of a stack of adapted layers, (L, M, O), or gated (L, M, O / 2).

    Args:
        joined_LJI: [W; A]. It has no gradient: that of A goes to the factor A, whose values its last rows are.
        factors: L (L, O, R) and A (L, R, I), which have gradients; the scale p (L, O); the bias followed by zeros
            (L, J). The last two may be None.
    """
    tokens_LMI = padded(tokens_LMI, joined_LJI.shape[-1])
    out_LMO: Tensor = torch.ops.sa3_trainer.joined_product(tokens_LMI, joined_LJI, *factors, gated)[0]
    return out_LMO


def padded(tokens_LMI: Tensor, length: int) -> Tensor:
    """The tokens with zeros appended to their features; tokens expanded over layers stay expanded."""
    spare = length - tokens_LMI.shape[-1]
    if spare == 0:
        return tokens_LMI
    is_expanded = tokens_LMI.stride(0) == 0
    longer = F.pad(tokens_LMI[:1] if is_expanded else tokens_LMI, (0, spare))
    return longer.expand(len(tokens_LMI), -1, -1) if is_expanded else longer


def _forward(
    tokens: Tensor,
    joined: Tensor,
    left: Tensor,
    right: Tensor,
    p: Tensor | None,
    bias: Tensor | None,
    gated: bool,
) -> tuple[Tensor, Tensor]:
    """Output, and joined product (L, M, J) for the backward; gated, its first O columns then hold W x + b + L A x."""
    width = joined.shape[1] - left.shape[1]
    product_LMJ = _product(tokens, joined, bias)
    if has_kernels(product_LMJ):
        from stages.adapters.ops.kernels import (
            fused_linear as kernels,  # deferred: Triton comes with CUDA builds of torch
        )

        return kernels.combined_output(
            product_LMJ, left, p, bias if p is not None else None, width, gated=gated
        ), product_LMJ
    return (gated_silu if gated else combined_output)(product_LMJ, left, p, bias), product_LMJ


def _product(tokens_LMI: Tensor, joined_LJI: Tensor, bias_LJ: Tensor | None) -> Tensor:
    """[W; A] x + [b; 0]."""
    if bias_LJ is None:
        return torch.bmm(tokens_LMI, joined_LJI.mT)
    if len(tokens_LMI) == 1:
        return torch.addmm(bias_LJ[0], tokens_LMI[0], joined_LJI[0].mT)[None]
    return torch.baddbmm(bias_LJ[:, None], tokens_LMI, joined_LJI.mT)


def combined_output(product_LMJ: Tensor, left_LOR: Tensor, p_LO: Tensor | None, bias_LJ: Tensor | None) -> Tensor:
    """p (first + second L^T) + (1 - p) b, (L, M, O), rounded once; `first`, W x + b, includes the bias already."""
    return _output_scaled(_sums(product_LMJ, left_LOR), p_LO, bias_LJ).to(product_LMJ.dtype)


def gated_silu(product_LMJ: Tensor, left_LOR: Tensor, p_LO: Tensor | None, bias_LJ: Tensor | None) -> Tensor:
    """a silu(g), where `combined_output` gives [a, g]. Overwrites `first` by first + second L^T for the backward."""
    sums = _sums(product_LMJ, left_LOR)
    product_LMJ[..., : left_LOR.shape[1]] = sums
    value, gate = _output_scaled(sums, p_LO, bias_LJ).to(product_LMJ.dtype).to(sums.dtype).chunk(2, dim=-1)
    return (value * F.silu(gate)).to(product_LMJ.dtype)


def _sums(product_LMJ: Tensor, left_LOR: Tensor) -> Tensor:
    num_out, rank = left_LOR.shape[1:]
    wide = torch.promote_types(product_LMJ.dtype, torch.float32)
    return product_LMJ[..., :num_out].to(wide) + product_LMJ[..., num_out : num_out + rank].to(wide) @ left_LOR.mT.to(
        wide
    )


def _output_scaled(sums_LMO: Tensor, p_LO: Tensor | None, bias_LJ: Tensor | None) -> Tensor:
    if p_LO is None:
        return sums_LMO
    whole = sums_LMO * p_LO[:, None]
    return whole if bias_LJ is None else whole + (bias_LJ[:, : whole.shape[-1]] * (1 - p_LO))[:, None]


def _silu_gradient(d_gated_LMO: Tensor, whole_LMO: Tensor) -> Tensor:
    """Gradient of [a, g] from that of a silu(g)."""
    value, gate = whole_LMO.chunk(2, dim=-1)
    share = gate.sigmoid()
    return torch.cat([d_gated_LMO * gate * share, d_gated_LMO * value * share * (1 + gate * (1 - share))], dim=-1)


def _backward(
    d_out: Tensor,
    product: Tensor,
    tokens: Tensor,
    joined: Tensor,
    left: Tensor,
    p: Tensor | None,
    bias: Tensor | None,
    gated: bool,
    needs_tokens: bool,
    right_length: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of tokens, L, A (`right_length` features; 0: not needed) and p; an empty tensor is one not needed.

    Those of L, A and p may still be being computed on a side stream: the backward of `unstack` waits for them.
    """
    num_out, rank = left.shape[1:]
    d_out = d_out.contiguous()
    if has_kernels(product):
        from stages.adapters.ops.kernels import fused_linear as kernels  # deferred, as above

        parts = kernels.output_gradients(d_out, product, left, p, bias, joined.shape[1] - num_out, gated=gated)
        d_product = parts.d_joined_LMJ
        d_left, d_right, d_p = _factor_gradients(parts, tokens[..., :right_length], left, p)
    else:
        d_product, d_left, d_p = output_gradients(d_out, product, left, p, bias, gated=gated)
        d_thin = d_product[..., num_out : num_out + rank]
        d_right = torch.bmm(d_thin.mT, tokens[..., :right_length]) if right_length else d_out.new_empty(0)
    d_tokens = torch.bmm(d_product, joined) if needs_tokens else d_out.new_empty(0)
    return d_tokens, d_left, d_right, torch.empty(0, device=d_out.device) if d_p is None else d_p


def _factor_gradients(
    parts: OutputGradients, tokens_LMI: Tensor, left_LOR: Tensor, p_LO: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tensors for the gradients of L, A and p, computed on a side stream: the layer before needs none of them."""
    from stages.adapters.ops.kernels import fused_linear as kernels  # deferred, as above

    (num_out, rank), num_in = left_LOR.shape[1:], tokens_LMI.shape[-1]
    d_left = torch.empty(left_LOR.shape, dtype=left_LOR.dtype, device=left_LOR.device)
    d_right = tokens_LMI.new_empty((len(left_LOR), rank, num_in) if num_in else 0)
    d_p = None if p_LO is None else torch.empty(p_LO.shape, device=p_LO.device)

    def compute() -> None:
        kernels.sum_parts(parts, d_left, d_p)
        if num_in:
            torch.bmm(parts.d_joined_LMJ[..., num_out : num_out + rank].mT, tokens_LMI, out=d_right)

    read, written = (tokens_LMI, *parts), (d_left, d_right, d_p)
    defer_or_run(DeferredWork(run=compute, reads=_present(read), writes=_present(written), large=len(left_LOR) > 1))
    return d_left, d_right, d_p


def _present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def output_gradients(
    d_out_LMO: Tensor,
    product_LMJ: Tensor,
    left_LOR: Tensor,
    p_LO: Tensor | None,
    bias_LJ: Tensor | None,
    *,
    gated: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the joined product (L, M, J), of L (L, O, R) and of p (L, O)."""
    num_out, rank = left_LOR.shape[1:]
    wide, narrow = torch.promote_types(product_LMJ.dtype, torch.float32), product_LMJ.dtype
    first, thin = product_LMJ[..., :num_out].to(wide), product_LMJ[..., num_out : num_out + rank].to(wide)
    d_p = None
    scaled = d_out_LMO
    if gated:
        whole = _output_scaled(first, p_LO, bias_LJ).to(narrow).to(wide)
        scaled = d_out_LMO = _silu_gradient(d_out_LMO.to(wide), whole).to(narrow)
    if p_LO is not None:
        sums = first if gated else _sums(product_LMJ, left_LOR)
        sums = sums if bias_LJ is None else sums - bias_LJ[:, None, :num_out].to(wide)
        d_p = (d_out_LMO.to(wide) * sums).sum(dim=1)
        scaled = (d_out_LMO * p_LO[:, None]).to(narrow)
    d_left = (scaled.to(wide).mT @ thin).to(narrow)
    d_thin = (scaled.to(wide) @ left_LOR.to(wide)).to(narrow)
    spare = product_LMJ.shape[-1] - num_out - rank
    return torch.cat([scaled, F.pad(d_thin, (0, spare))], dim=-1), d_left, d_p


_forward_op = torch.library.custom_op(
    NAME,
    _forward,
    mutates_args=(),
    schema="(Tensor tokens, Tensor joined, Tensor left, Tensor right, Tensor? p, Tensor? bias, bool gated) "
    "-> (Tensor, Tensor)",
)
_backward_op = torch.library.custom_op(
    f"{NAME}_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor d_out, Tensor product, Tensor tokens, Tensor joined, Tensor left, Tensor? p, Tensor? bias, "
    "bool gated, bool needs_tokens, int right_length) -> (Tensor, Tensor, Tensor, Tensor)",
)


@_forward_op.register_fake
def _forward_shapes(
    tokens: Tensor,
    joined: Tensor,
    left: Tensor,
    right: Tensor,
    p: Tensor | None,
    bias: Tensor | None,
    gated: bool,
) -> tuple[Tensor, Tensor]:
    (layers, count), num_out = tokens.shape[:2], left.shape[1] // (2 if gated else 1)
    return tokens.new_empty(layers, count, num_out), tokens.new_empty(layers, count, joined.shape[1])


@_backward_op.register_fake
def _backward_shapes(
    d_out: Tensor,
    product: Tensor,
    tokens: Tensor,
    joined: Tensor,
    left: Tensor,
    p: Tensor | None,
    bias: Tensor | None,
    gated: bool,
    needs_tokens: bool,
    right_length: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layers, count, num_in = tokens.shape
    return (
        tokens.new_empty((layers, count, num_in) if needs_tokens else 0),
        left.new_empty(left.shape),
        tokens.new_empty((layers, left.shape[-1], right_length) if right_length else 0),
        torch.empty(0, device=left.device) if p is None else torch.empty_like(p),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tokens, joined, left, right, p, bias, ctx.gated = inputs
    ctx.num_in = right.shape[-1]
    ctx.save_for_backward(output[1], tokens, joined, left, p, bias)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, d_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    product, tokens, joined, left, p, bias = ctx.saved_tensors
    needs = ctx.needs_input_grad
    right_length = ctx.num_in if needs[3] else 0
    ways = (ctx.gated, needs[0], right_length)
    d_tokens, d_left, d_right, d_p = _backward_op(d_out, product, tokens, joined, left, p, bias, *ways)
    return (
        d_tokens if needs[0] else None,
        None,
        d_left if needs[2] else None,
        d_right if needs[3] else None,
        d_p if p is not None and needs[4] else None,
        None,
        None,
    )


_forward_op.register_autograd(_gradients, setup_context=_keep)
