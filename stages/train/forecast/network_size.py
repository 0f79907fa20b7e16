"""Sizes of a network and of its adapted layers, from config and layer filter alone; no weight is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from math import prod
from typing import Any

import torch

from stages.adapters.layer_filter import selected
from stages.model_config import ModelConfig
from stages.models.nets.dit.conditioning import Conditioner
from stages.models.nets.dit.transformer import Denoiser, TransformerConfig, transformer_config

_BLOCK = re.compile(r"transformer\.layers\.(\d+)\.")


class LayerUse(Enum):
    """Where a layer is used and what it multiplies. A layer has the first use whose pattern its name contains."""

    BLOCK_CONTEXT = r"layers\.\d+\.cross_attn\.to_kv"
    BLOCK_FRAMES = r"layers\.\d+\.to_local_embed"
    BLOCK_TOKENS = r"layers\.\d+\."
    CONTEXT = r"to_cond_embed"
    FRAMES = r"project_in|preprocess_conv"
    FRAMES_OUT = r"project_out|postprocess_conv"
    CLIPS = r""

    @classmethod
    def of(cls, name: str) -> LayerUse:
        """The use of the layer with this name."""
        return next(use for use in cls if re.search(use.value, name))

    @property
    def in_block(self) -> bool:
        """Whether it is a part of a transformer block."""
        return self.name.startswith("BLOCK")


@dataclass
class LayerSums:
    """Sums over the layers of one use."""

    count: int = 0
    """Layers."""
    inputs: int = 0
    """Input features."""
    outputs: int = 0
    """Output features."""
    values: int = 0
    """Values of the weights."""


Layers = Mapping[LayerUse, LayerSums]


@dataclass(frozen=True, kw_only=True)
class BatchSize:
    """Size of a batch that goes through the network at a time."""

    num_clips: int
    num_frames: int


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """Sizes of denoiser and conditioner together."""

    transformer: TransformerConfig
    num_context_tokens: int
    """Tokens of a padded prompt, and one for the duration."""
    layers: Layers
    """All Linear and Conv1d layers."""
    adapted: Layers
    """Those that carry an adapter."""
    num_values: int
    """Values of all parameters."""
    num_trained_blocks: int
    """Blocks that a gradient passes; those before the first adapted layer keep nothing for the backward pass."""

    @property
    def block_values(self) -> int:
        """Values of the blocks' weights, which a quantization stores in 8 bits."""
        return sum(sums.values for use, sums in self.layers.items() if use.in_block)

    @property
    def block_rows(self) -> int:
        """Rows of these weights, each of which then has a scale."""
        return sum(sums.outputs for use, sums in self.layers.items() if use.in_block)

    def num_rows(self, use: LayerUse, batch: BatchSize) -> int:
        """Number of feature vectors that a layer of this use multiplies."""
        if use is LayerUse.CLIPS:
            return batch.num_clips
        if use in (LayerUse.CONTEXT, LayerUse.BLOCK_CONTEXT):
            return batch.num_clips * self.num_context_tokens
        memory = self.transformer.num_memory_tokens if use is LayerUse.BLOCK_TOKENS else 0
        return batch.num_clips * (batch.num_frames + memory)


def network_size(
    config: Mapping[str, Any], include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> NetworkSize:
    """Sizes of a model's networks, and of the layers that include and exclude leave for an adapter. Cached.

    Raises:
        FilterMatchesNothing: a pattern matches no layer, or no layer is left.
        UnsupportedModelConfig.
    """
    patterns = [None if given is None else tuple(given) for given in (include, exclude)]
    return _network_size(json.dumps(config, sort_keys=True), *patterns)


@lru_cache(16)
def _network_size(config_json: str, include: tuple[str, ...] | None, exclude: tuple[str, ...] | None) -> NetworkSize:
    config = json.loads(config_json)
    shapes = parameter_shapes(config)
    # Parameters of norms and embeddings have other names.
    layers = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
    names, transformer = selected(layers, include, exclude), transformer_config(config)
    return NetworkSize(
        transformer=transformer,
        num_context_tokens=ModelConfig(config).max_prompt_tokens + 1,
        layers=sums_by_use(layers),
        adapted=sums_by_use({name: layers[name] for name in names}),
        num_values=sum(prod(shape) for shape in shapes.values()),
        num_trained_blocks=transformer.depth - first_trained_block(names, transformer.depth),
    )


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters of denoiser and conditioner, by name.

    One block is built, on the meta device: the others are like it.
    """
    shallow = deepcopy(dict(config))
    shallow["model"]["diffusion"]["config"]["depth"] = 1
    with torch.device("meta"):
        roots = (Denoiser(shallow), Conditioner(shallow))
    shapes = {name: tuple(parameter.shape) for root in roots for name, parameter in root.named_parameters()}
    return {
        _BLOCK.sub(f"transformer.layers.{block}.", name): shape
        for block in range(ModelConfig(config).transformer_depth)
        for name, shape in shapes.items()
    }


def sums_by_use(shapes: Mapping[str, Sequence[int]]) -> Layers:
    """Sums over layers, from the shapes (out, in) or (out, in, 1) of their weights."""
    layers = {use: LayerSums() for use in LayerUse}
    for name, (num_out, *rest) in shapes.items():
        sums, num_in = layers[LayerUse.of(name)], prod(rest)
        sums.count, sums.inputs, sums.outputs = sums.count + 1, sums.inputs + num_in, sums.outputs + num_out
        sums.values += num_out * num_in
    return layers


def first_trained_block(names: Sequence[str], depth: int) -> int:
    """Index of the first block that a gradient passes when these layers carry an adapter; `depth` if none."""
    found = [(LayerUse.of(name), _BLOCK.search(name)) for name in names]
    if any(use in (LayerUse.CLIPS, LayerUse.CONTEXT, LayerUse.FRAMES) for use, _ in found):
        return 0
    return min((int(block[1]) for _, block in found if block is not None), default=depth)
