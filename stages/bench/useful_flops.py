"""Floating point operations that a training step needs at least, from the sizes of the network."""

from __future__ import annotations

from stages.train.forecast.network_size import BatchSize, LayerUse, NetworkSize

BACKWARD_PRODUCTS, BACKWARD_ATTENTION = 1.0, 2.5
"""Work of the backward pass, as a multiple of the forward's: frozen weights need no gradient."""


def useful_flops(network: NetworkSize, batch: BatchSize) -> float:
    """Multiplications and additions of the base model's forward pass, and of its backward pass to the input.

    The work of adapters and of recomputed activations does not count.
    """
    forward = product_flops(network, batch) * (1 + BACKWARD_PRODUCTS)
    return forward + attention_flops(network, batch) * (1 + BACKWARD_ATTENTION)


def product_flops(network: NetworkSize, batch: BatchSize) -> int:
    """Flops of one forward pass in products with the base weights."""
    return 2 * sum(network.num_rows(use, batch) * sums.values for use, sums in network.layers.items())


def attention_flops(network: NetworkSize, batch: BatchSize) -> int:
    """Flops of one forward pass in attention scores and weighted values, of self-attention and cross-attention."""
    transformer, clips = network.transformer, batch.num_clips
    tokens, context = (network.num_rows(use, batch) // clips for use in (LayerUse.BLOCK_TOKENS, LayerUse.BLOCK_CONTEXT))
    maps = 2 if transformer.differential else 1
    return 4 * transformer.depth * clips * maps * transformer.width * tokens * (tokens + context)
