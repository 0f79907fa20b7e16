"""Start of the autoencoder's weights: a near-linear codec, whose first attention layers tie every patch to its frame.

Differential attention with equal weights starts with two maps that are both close to uniform: their difference is
close to zero, and nothing passes. Here each head starts by position instead. A feature that is constant (norm gain 0,
shift 1) feeds queries and keys, whose first columns are phases of the rotary embedding chosen so that the head attends
to the token a fixed number of places back.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.models.nets.autoencoder.resampling_blocks import ResamplingBlock, ResamplingTransformer

AUDIO_RMS = 0.15
"""Level of the sounds; patches of this level become tokens of about unit size."""
FIRST_OUTPUT = 0.1
"""Gain of the decoder's output mapping: it starts quiet."""
NORM_SLOPE = 1.0
HEAD_GAIN = 4.0
"""Gain of queries and keys: how sharply a head looks at its token."""
CONTENT = 0.3
"""Factor on the random weights of queries and keys."""
PHASE = 1.5
ROTATED_PAIRS = 3
"""Pairs of rotated features that carry the position: the fastest ones."""


@torch.no_grad()
def initialise(autoencoder: Autoencoder, seed: int) -> None:
    """Set every weight of the autoencoder, in place; the same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    for module in autoencoder.modules():
        if isinstance(module, nn.Linear):
            _fan_in(module.weight, 1.0, generator)
            if module.bias is not None:
                module.bias.zero_()
    for side, gain in ((encoder_side(autoencoder), 1 / AUDIO_RMS), (decoder_side(autoencoder), FIRST_OUTPUT)):
        side.new_tokens.copy_(0.02 * torch.randn(side.new_tokens.shape, generator=generator))
        _fan_in(side.mapping.weight_v, 1.0, generator)
        side.mapping.weight_g.fill_(gain)
        side.mapping.bias.zero_()
        for layer, block in enumerate(blocks(side)):
            _initialise_block(block, layer, generator)
            _positional_heads(block, layer, side.config.stride, generator)


def encoder_side(autoencoder: Autoencoder) -> ResamplingTransformer:
    """The transformer of the encoder."""
    return autoencoder.encoder.downsampling


def decoder_side(autoencoder: Autoencoder) -> ResamplingTransformer:
    """The transformer of the decoder."""
    return cast(ResamplingTransformer, autoencoder.decoder.layers["3"])


def blocks(side: ResamplingTransformer) -> list[ResamplingBlock]:
    """Its layers."""
    return [cast(ResamplingBlock, block) for block in side.transformers]


def block_matrices(autoencoder: Autoencoder) -> list[Tensor]:
    """The weight matrices inside the layers of both sides."""
    return [
        linear.weight
        for side in (encoder_side(autoencoder), decoder_side(autoencoder))
        for block in blocks(side)
        for linear in block.modules()
        if isinstance(linear, nn.Linear)
    ]


def _fan_in(weight: Tensor, gain: float, generator: torch.Generator) -> None:
    """Normal values of standard deviation gain / sqrt(fan-in)."""
    std = gain * weight[0].numel() ** -0.5
    weight.copy_(std * torch.randn(weight.shape, generator=generator))


def _initialise_block(block: ResamplingBlock, layer: int, generator: torch.Generator) -> None:
    attention = block.self_attn
    _fan_in(attention.to_out.weight, 1.0 if layer == 0 else 0.5, generator)
    _fan_in(cast(nn.Linear, block.ff.ff[2]).weight, 0.5, generator)
    for norm in (block.pre_norm, block.ff_norm, attention.q_norm, attention.k_norm):
        cast(Tensor, norm.alpha).fill_(NORM_SLOPE)
    for norm in (attention.q_norm, attention.k_norm):
        cast(Tensor, norm.gamma).fill_(HEAD_GAIN)


def _positional_heads(block: ResamplingBlock, layer: int, stride: int, generator: torch.Generator) -> None:
    """Make both maps of every head of a layer look a fixed number of tokens back.

    In the first layer the distances are 1 to `stride`, over both maps if there are fewer heads than patches (with
    fewer than half as many, distant patches start untied); in later layers they are random.
    """
    block.pre_norm.gamma[0], block.pre_norm.beta[0] = 0.0, 1.0
    num_heads, width = block.num_heads, block.self_attn.to_out.weight.shape[0]
    parts = block.self_attn.to_qkv.weight.view(5, num_heads, width // num_heads, width)
    pair_frequencies = block.rope.inv_freq[:ROTATED_PAIRS]
    later = torch.randint(-stride, stride + 1, (num_heads, 2), generator=generator).tolist()
    for head in range(num_heads):
        distances = first_distances(head, num_heads, stride) if layer == 0 else later[head]
        for (query, key), distance in zip(((0, 1), (3, 4)), distances, strict=True):
            _look_back(parts[query, head], parts[key, head], distance, pair_frequencies)


def first_distances(head: int, num_heads: int, stride: int) -> tuple[float, float]:
    """How far back the two maps of a head of the first layer look."""
    if stride <= num_heads:
        return 1 + head % stride, 0
    return 1 + (2 * head) % stride, 1 + (2 * head + 1) % stride


def _look_back(query_DW: Tensor, key_DW: Tensor, distance: float, frequencies: Tensor) -> None:
    """Rotations of the constant feature (column 0) that agree when the key is `distance` tokens before the query."""
    pairs = query_DW.shape[0] // 4
    for weight in (query_DW, key_DW):
        weight.mul_(CONTENT)
        weight[:, 0] = 0.0
    for pair, frequency in enumerate(frequencies.tolist()):
        angle = -distance * frequency
        query_DW[pair, 0], query_DW[pair + pairs, 0] = PHASE * math.cos(angle), PHASE * math.sin(angle)
        key_DW[pair, 0] = PHASE
