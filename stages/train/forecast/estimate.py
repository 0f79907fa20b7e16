"""The device memory that a training needs, by part, before anything is loaded.

A closed formula counts what a step holds (`activations`). What a device's allocator, compiler and libraries make of it
is a cost model of a few figures for each way of stepping, fitted to measured trainings (tests/measured_memory.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stages.adapters.kind import kind_named
from stages.model_config import ModelConfig
from stages.train.forecast.activations import ForwardPass
from stages.train.forecast.autoencoder_memory import encoding_bytes
from stages.train.forecast.network_size import BatchSize, NetworkSize, network_size
from stages.train.stage import TrainParams

GIB, MIB = 1 << 30, 1 << 20
ERROR = 0.25
"""How far the memory measured may lie from the estimate, as a share of it: more than in any case measured."""

MOMENTS = {"adamw": 2, "lion": 1, "prodigy": 4}
"""Tensors of the adapter's size that each optimiser keeps."""


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """What a device makes of a counted step, in one way of stepping; fitted to measurements."""

    held: float
    """Memory taken per byte counted: a compiler computes again what is cheap, a heap on the CPU has holes."""
    held_checkpointing: float
    """The same with gradient checkpointing."""
    libraries: int
    """Bytes of code, kernels and workspaces."""
    narrow: int = 0
    """Further, with products in 16 bits."""
    length: int = 0
    """Further in bf16, for each length of batch but the first: kernels are made for every shape and kept."""
    most_lengths: int = 0
    """Most of that: then the oldest are let go."""


GRAPHS = CostModel(held=0.8, held_checkpointing=1.2, libraries=512 * MIB)
"""CUDA, compiled and replayed as graphs; fitted on an H200 in bf16."""
EAGER_CUDA = CostModel(held=1.0, held_checkpointing=1.0, libraries=307 * MIB)
HOST = CostModel(
    held=1.45, held_checkpointing=2.7, libraries=80 * MIB, narrow=55 * MIB, length=38 * MIB, most_lengths=850 * MIB
)
"""The CPU, fitted on one thread with glibc's heap. MPS, where nothing was measured, is taken to be like it."""


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """All that decides how much memory a training needs."""

    config: Mapping[str, Any]
    """model_config.json."""
    params: TrainParams
    batch: BatchSize
    """The largest."""
    longest: BatchSize | None = None
    """The longest clip by itself, as it is trained on where it is beyond a budget of frames."""
    dtype: torch.dtype
    """Of the base and of activations, as the device can do it."""
    device: torch.device
    eager: bool = False
    """One operation after the other, even where steps could be CUDA graphs."""
    checkpointing: bool = False
    clip_samples: int | None = None
    """Of the longest excerpt, where audio is encoded inside the loop."""
    autoencoder_dtype: torch.dtype = torch.float32
    clips_bytes: int = 0
    """Latents kept and audio read ahead, where the device's memory is the host's."""
    num_lengths: int = 1
    """Different lengths of batches, where the device keeps something for each."""

    @property
    def cost_model(self) -> CostModel:
        """Of the way it steps if nothing hinders it."""
        if self.device.type != "cuda":
            return HOST
        recordable = self.params.optimizer == "adamw" and self.params.base_quantization == "none"
        return GRAPHS if recordable and not self.eager else EAGER_CUDA

    @property
    def network(self) -> NetworkSize:
        """Raises: FilterMatchesNothing, UnsupportedModelConfig."""
        return network_size(self.config, self.params.include, self.params.exclude)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that a training needs."""

    parts: Mapping[str, int]
    """Held while steps are made: `weights`, `adapter`, `activations`, `autoencoder`, `clips`, `libraries`."""
    loading: int = 0
    """Held while the base is loaded, which is more where it is then stored in 8 bits."""

    @property
    def total(self) -> int:
        """The most that is held at any time."""
        return max(sum(self.parts.values()), self.loading)

    @property
    def least(self) -> int:
        """The low end of the error: where not even this is free, the training cannot fit."""
        return int(self.total * (1 - ERROR))

    def words(self) -> str:
        """The parts, such as `weights 2 MiB, adapter 4 MiB`."""
        if self.loading > (later := sum(self.parts.values())):
            return f"to load the base before it is stored in 8 bits; {amount(later)} after that"
        return ", ".join(f"{name} {amount(size)}" for name, size in self.parts.items() if size > 0)


def estimated(setup: TrainingSetup) -> MemoryEstimate:
    """The memory of a training, from its settings alone.

    Raises:
        FilterMatchesNothing: include or exclude match no layer.
        UnsupportedModelConfig.
    """
    params, network, itemsize = setup.params, setup.network, setup.dtype.itemsize
    trained, frozen = adapter_values(network, params)
    # Values, gradients, moments, average.
    copies = 2 + MOMENTS[params.optimizer] + (params.ema_decay is not None)
    activations, libraries = activation_bytes(setup), library_bytes(setup)
    parts = {
        "weights": weights_bytes(setup),
        "adapter": 4 * (copies * trained + frozen),
        "activations": activations,
        "autoencoder": autoencoder_bytes(setup, activations),
        "clips": setup.clips_bytes + (0 if setup.device.type == "cuda" else waiting_bytes(setup)),
        "libraries": libraries,
    }
    return MemoryEstimate(parts=parts, loading=itemsize * network.num_values + 4 * (trained + frozen) + libraries)


def adapter_values(network: NetworkSize, params: TrainParams) -> tuple[int, int]:
    """How many values of the adapter are trained, and how many are frozen: singular vectors, their products with W."""
    kind, rank, sums = kind_named(params.adapter_type), params.rank, network.adapted.values()
    inputs, outputs = sum(each.inputs for each in sums), sum(each.outputs for each in sums)
    lengths = outputs * kind.has_output_magnitude + inputs * kind.has_input_magnitude
    if kind.basis.singular:
        return lengths + rank**2 * sum(each.count for each in sums), 2 * rank * (inputs + outputs)
    return lengths + rank * (inputs + outputs), 0


def activation_bytes(setup: TrainingSetup) -> int:
    """What the largest batch takes in the forward and backward."""
    one_pass = ForwardPass(
        network=setup.network,
        batch=setup.batch,
        kind=kind_named(setup.params.adapter_type),
        rank=setup.params.rank,
        itemsize=setup.dtype.itemsize,
    )
    held = setup.cost_model.held_checkpointing if setup.checkpointing else setup.cost_model.held
    return int(held * one_pass.activation_bytes(checkpointing=setup.checkpointing))


def library_bytes(setup: TrainingSetup) -> int:
    """Of libraries; on the CPU those keep kernels for every shape of a product in bf16."""
    cost = setup.cost_model
    # fp16 was measured where it has no kernels of its own: there nothing is kept.
    further = setup.num_lengths - 1 if setup.dtype is torch.bfloat16 else 0
    narrow = cost.narrow if setup.dtype.itemsize < 4 else 0
    return cost.libraries + narrow + min(cost.length * further, cost.most_lengths)


def waiting_bytes(setup: TrainingSetup) -> int:
    """Held by the host of a step's other batches, all read before the first is learned from.

    Their latents, their noise, and the noise as optimal transport couples it; of all clips of the step, the costs and
    plan of that coupling.
    """
    params, batch = setup.params, setup.batch
    others = (params.gradient_accumulation - 1) * batch.num_clips
    clip = 4 * ModelConfig(setup.config).latent_channels * batch.num_frames
    coupling = 4 * 4 * (others + batch.num_clips) ** 2 if others and params.optimal_transport else 0
    return 3 * clip * others + coupling


def weights_bytes(setup: TrainingSetup) -> int:
    """Of the frozen base as it is stored; 8-bit matrices have an fp32 scale for every row."""
    network, itemsize = setup.network, setup.dtype.itemsize
    if setup.params.base_quantization == "none":
        return itemsize * network.num_values
    return network.block_values + 4 * network.block_rows + itemsize * (network.num_values - network.block_values)


def autoencoder_bytes(setup: TrainingSetup, activations: int) -> int:
    """Of the autoencoder, where it is part of the training.

    Its work and a step take turns, but the memory of a CUDA graph is never let go.
    """
    if setup.clip_samples is None:
        return 0
    weights, working = encoding_bytes(setup.config, setup.clip_samples, setup.autoencoder_dtype)
    return weights + (working if setup.cost_model is GRAPHS else max(working - activations, 0))


def amount(size: int) -> str:
    """Bytes for people."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size / MIB:,.0f} MiB"
