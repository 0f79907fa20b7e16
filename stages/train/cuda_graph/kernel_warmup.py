"""Compiles the Triton kernels of a training in parallel: one after the other takes as long as compiling a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from stages.adapters.ops import fused_linear
from stages.adapters.ops.frozen_matmul import NUM_PIECES
from stages.adapters.ops.side_streams import use_side_streams
from stages.adapters.stacked.layer_group import LayerGroup, adapted_weight
from stages.adapters.stacked.stacked_adapter import StackedAdapter
from stages.models.nets.attention import differential, heads
from stages.models.nets.attention.attention import CrossAttention, SelfAttention
from stages.models.nets.attention.rotary import RotaryAngles
from stages.models.nets.dit.transformer import Denoiser

SIZE = 32
"""Sizes of made-up tensors: a compiled kernel depends on the dtype and on which sizes are multiples of 16."""
ODD, ODD_LENGTH = 257, 108
"""Features and frames that are not multiples of 16."""
WIDE = 8192
"""Features of a gated output, wide enough for the kernel that sums over many blocks."""
THREADS = 8


def compile_kernels(denoiser: Denoiser, layers: StackedAdapter) -> None:
    """Run each kernel once on small tensors, in threads: compiling releases the GIL most of the time.

    A kernel that is missed here is compiled where it is first used.
    """
    joining = [group for group in layers.groups if group.joined_LJI is not None]
    if not joining:
        return
    smallest = min(joining, key=lambda group: group.weight_LOI.numel())
    kind = smallest.slot.kind
    products = _products(smallest, kind.has_output_magnitude)
    works: list[Callable[[], object]] = [partial(_norms, smallest), *products, *_heads(denoiser)]
    if kind.has_input_magnitude:
        works += _in_scales(smallest)
    if kind.has_input_magnitude and kind.has_output_magnitude:
        works += _passes(smallest)
    device = smallest.weight_LOI.device
    # A new thread uses device 0; and side streams are for training steps, not for this.
    on_device = partial(torch.cuda.set_device, device) if device.type == "cuda" else None
    with use_side_streams(None), ThreadPoolExecutor(THREADS, initializer=on_device) as pool:
        for work in [pool.submit(one) for one in works]:
            work.result()


def _norms(group: LayerGroup) -> None:
    """Forward and backward of a small group's row and column scales, on copies of its parameters."""
    group = replace(group, slot=deepcopy(group.slot))
    ready = group.compute(adapted_weight, joined=False)
    scales = [one.sum() for one in (ready.p_O, ready.q_I) if one is not None]
    if scales:
        torch.autograd.grad(scales, list(group.slot.leaves().values()))


def _in_scales(group: LayerGroup) -> Iterator[Callable[[], object]]:
    """Scaled inputs: tokens, which need a gradient; and the local condition, which needs none, of one clip and more."""
    like = group.weight_LOI
    odd = (like.new_zeros(1, SIZE, ODD), like.new_zeros(1, ODD, ODD_LENGTH).mT)
    for tokens_1MI, needs_tokens in ((like.new_zeros(1, SIZE, SIZE), True), *((one, False) for one in odd)):
        yield partial(_in_scale, tokens_1MI, needs_tokens)


def _in_scale(tokens_1MI: Tensor, needs_tokens: bool) -> None:
    from stages.adapters.ops.kernels import input_scale as kernels  # deferred: Triton comes with CUDA builds of torch

    scale_1I = torch.zeros(1, tokens_1MI.shape[-1], device=tokens_1MI.device)
    kernels.scaled_inputs_backward(
        kernels.scaled_inputs(tokens_1MI, scale_1I), tokens_1MI, scale_1I, needs_tokens=needs_tokens
    )


def _passes(group: LayerGroup) -> Iterator[Callable[[], object]]:
    """Passes over weights and over their transposes."""
    from stages.adapters.ops.kernels import weight_pass as passes  # deferred, as above

    matrix_1OI = group.weight_LOI.new_zeros(1, SIZE, SIZE)
    pieces_1JI, factor_1I = matrix_1OI.new_zeros(1, NUM_PIECES * group.slot.rank, SIZE), matrix_1OI.new_zeros(1, SIZE)
    if group.slot.rank <= passes.MAX_RANK:
        for one in (matrix_1OI, matrix_1OI.mT):
            yield partial(passes.product_and_squares, one, pieces_1JI, factor_1I.float(), 1.0)


def _products(group: LayerGroup, has_scale: bool) -> Iterator[Callable[[], object]]:
    """Forward and backward of fused linear layers: with a bias, without, and gated."""
    rank, like = group.slot.rank, group.weight_LOI
    tokens = like.new_zeros(1, SIZE, SIZE)
    for num_out, has_bias, gated in ((SIZE, True, False), (SIZE, False, False), (WIDE, True, True)):
        joined, left = (
            like.new_zeros(1, num_out + fused_linear.num_factor_rows(rank), SIZE),
            like.new_zeros(1, num_out, rank),
        )
        scale = torch.zeros(1, num_out, device=like.device) if has_scale else None
        bias = like.new_zeros(joined.shape[:2]) if has_bias else None
        product, d_out = (like.new_zeros(1, SIZE, size) for size in (joined.shape[1], num_out // (2 if gated else 1)))
        yield partial(fused_linear._forward, tokens, joined, left, left.mT, scale, bias, gated)
        yield partial(fused_linear._backward, d_out, product, tokens, joined, left, scale, bias, gated, False, 0)


def _heads(denoiser: Denoiser) -> Iterator[Callable[[], object]]:
    """Forward and backward of the head kernels of self- and cross-attention, and of differential attention."""
    tower = denoiser.model.transformer
    rotary = tower.rotary_pos_emb(SIZE)
    for module in tower.layers[0].modules():
        if isinstance(module, SelfAttention):
            yield partial(_head, module, module.roles, rotary)
            if module.fused_differential is not None:
                for valid in (None, torch.ones(1, SIZE, dtype=torch.bool, device=rotary.cos_ND.device)):
                    yield partial(_attention, module, valid)
        elif isinstance(module, CrossAttention):
            yield partial(_head, module, module.query_roles, None)
            yield partial(_head, module, module.context_roles, None)


def _head(attention: SelfAttention | CrossAttention, roles: tuple[int, ...], rotary: RotaryAngles | None) -> None:
    query_gamma, key_gamma, eps = heads.norm_gains(attention.q_norm, attention.k_norm)
    features = query_gamma.new_zeros(1, SIZE, len(roles) * attention.num_heads * len(query_gamma))
    cos, sin = (None, None) if rotary is None else rotary
    maps = attention.value_copies
    made = heads._forward(features, query_gamma, key_gamma, cos, sin, attention.num_heads, roles, eps, maps)
    heads._backward(*made, features, query_gamma, key_gamma, cos, sin, attention.num_heads, roles, eps, maps)


def _attention(attention: SelfAttention, valid: Tensor | None) -> None:
    gamma = heads.norm_gains(attention.q_norm, attention.k_norm)[0]
    query, value = (gamma.new_zeros(1, maps * attention.num_heads, SIZE, len(gamma)) for maps in (2, 1))
    made = differential._forward(query, query, value, valid)
    differential._backward(made[0], query, query, value, valid, *made)
