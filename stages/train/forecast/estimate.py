"""Estimate of the device memory that a training needs, by part, before anything is loaded.

A closed formula counts what a step holds (`activations`). What a device's allocator, compiler and libraries add is a
cost model of a few figures for each way of running a step, fitted to measured trainings (tests/measured_memory.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stages.adapters.kind import kind_named
from stages.model_config import ModelConfig
from stages.plural import size as size_in_words
from stages.train.forecast.activations import ForwardPass
from stages.train.forecast.autoencoder_memory import encoding_bytes
from stages.train.forecast.network_size import BatchSize, NetworkSize, network_size
from stages.train.stage import TrainParams

GIB, MIB = 1 << 30, 1 << 20
ERROR = 0.25
"""Relative error of the estimate: more than in any case measured."""

MOMENTS = {"adamw": 2, "lion": 1, "prodigy": 4}
"""Tensors of the adapter's size that each optimiser keeps."""


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Memory of a counted step on a device, in one way of running it; fitted to measurements."""

    activation_factor: float
    """Memory taken per byte counted: a compiler recomputes what is cheap, a heap on the CPU has holes."""
    checkpointing_factor: float
    """The same with gradient checkpointing."""
    library_bytes: int
    """Code, kernels and workspaces."""
    narrow_bytes: int = 0
    """Further library memory for products in 16 bits."""
    length_bytes: int = 0
    """Further in bf16, for each length of batch but the first: kernels are made for every shape and kept."""
    max_length_bytes: int = 0
    """Most of that: beyond, the oldest kernels are freed."""


CUDA_GRAPHS = CostModel(activation_factor=0.8, checkpointing_factor=1.2, library_bytes=512 * MIB)
"""CUDA, compiled and replayed as graphs; fitted on an H200 in bf16."""
CUDA_EAGER = CostModel(activation_factor=1.0, checkpointing_factor=1.0, library_bytes=307 * MIB)
HOST = CostModel(
    activation_factor=1.45,
    checkpointing_factor=2.7,
    library_bytes=80 * MIB,
    narrow_bytes=55 * MIB,
    length_bytes=38 * MIB,
    max_length_bytes=850 * MIB,
)
"""The CPU, fitted on one thread with glibc's heap. MPS, where nothing was measured, is taken to be like it."""


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """Everything that decides how much memory a training needs."""

    config: Mapping[str, Any]
    """model_config.json."""
    params: TrainParams
    batch: BatchSize
    """The largest batch."""
    longest: BatchSize | None = None
    """With a budget of frames, the longest clip alone: a clip beyond the budget is a batch of its own."""
    dtype: torch.dtype
    """Dtype of the base and of activations on this device."""
    device: torch.device
    eager: bool = False
    """Whether operations run one by one even where steps could be CUDA graphs."""
    checkpointing: bool = False
    clip_samples: int | None = None
    """Samples of the longest excerpt, if audio is encoded inside the loop."""
    autoencoder_dtype: torch.dtype = torch.float32
    clips_bytes: int = 0
    """Cached latents and prefetched audio, where the device's memory is the host's."""
    num_lengths: int = 1
    """Number of different lengths of batches, where the device keeps kernels for each."""

    @property
    def cost_model(self) -> CostModel:
        """The cost model of the fastest way of running these steps."""
        if self.device.type != "cuda":
            return HOST
        recordable = self.params.optimizer == "adamw" and self.params.base_quantization == "none"
        return CUDA_GRAPHS if recordable and not self.eager else CUDA_EAGER

    @property
    def network(self) -> NetworkSize:
        """Sizes of the networks. Raises: FilterMatchesNothing, UnsupportedModelConfig."""
        return network_size(self.config, self.params.include, self.params.exclude)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Memory that a training needs."""

    bytes_by_part: Mapping[str, int]
    """During steps: `weights`, `adapter`, `activations`, `autoencoder`, `clips`, `libraries`."""
    loading_bytes: int = 0
    """While the base is loaded, which may be more where it is then stored in 8 bits."""

    @property
    def step_bytes(self) -> int:
        """Memory during steps."""
        return sum(self.bytes_by_part.values())

    @property
    def total_bytes(self) -> int:
        """Peak of the whole training."""
        return max(self.step_bytes, self.loading_bytes)

    @property
    def lower_bound_bytes(self) -> int:
        """Low end of the error: if not even this is free, the training cannot fit."""
        return int(self.total_bytes * (1 - ERROR))

    def breakdown(self) -> str:
        """The parts as text, such as `weights 2.1 MB, adapter 4.2 MB`; without the smallest ones."""
        if self.loading_bytes > self.step_bytes:
            return f"to load the base before it is stored in 8 bits; {size_in_words(self.step_bytes)} after that"
        least = min(MIB // 2, max(self.bytes_by_part.values()))
        parts = {name: size for name, size in self.bytes_by_part.items() if size >= least}
        return ", ".join(f"{name} {size_in_words(size)}" for name, size in parts.items())


def memory_estimate(setup: TrainingSetup) -> MemoryEstimate:
    """Estimate of a training's memory.

    Raises:
        FilterMatchesNothing: include or exclude match no layer.
        UnsupportedModelConfig.
    """
    params, network, itemsize = setup.params, setup.network, setup.dtype.itemsize
    trained, frozen = adapter_values(network, params)
    fp32_copies = 2 + MOMENTS[params.optimizer] + (params.ema_decay is not None)  # values, gradients, moments, average
    activations, libraries = activation_bytes(setup), library_bytes(setup)
    parts = {
        "weights": weights_bytes(setup),
        "adapter": 4 * (fp32_copies * trained + frozen),
        "activations": activations,
        "autoencoder": autoencoder_bytes(setup, activations),
        "clips": setup.clips_bytes + (0 if setup.device.type == "cuda" else waiting_bytes(setup)),
        "libraries": libraries,
    }
    loading_bytes = itemsize * network.num_values + 4 * (trained + frozen) + libraries
    return MemoryEstimate(bytes_by_part=parts, loading_bytes=loading_bytes)


def adapter_values(network: NetworkSize, params: TrainParams) -> tuple[int, int]:
    """Numbers of trained and of frozen values of the adapter; frozen are singular vectors and their products with W."""
    kind, rank, sums = kind_named(params.adapter_type), params.rank, network.adapted.values()
    inputs, outputs = sum(each.inputs for each in sums), sum(each.outputs for each in sums)
    lengths = outputs * kind.has_output_magnitude + inputs * kind.has_input_magnitude
    if kind.basis.singular:
        return lengths + rank**2 * sum(each.count for each in sums), 2 * rank * (inputs + outputs)
    return lengths + rank * (inputs + outputs), 0


def activation_bytes(setup: TrainingSetup) -> int:
    """Activations of the largest batch, as the device holds them."""
    one_pass = ForwardPass(
        network=setup.network,
        batch=setup.batch,
        kind=kind_named(setup.params.adapter_type),
        rank=setup.params.rank,
        itemsize=setup.dtype.itemsize,
    )
    cost, checkpointing = setup.cost_model, setup.checkpointing
    factor = cost.checkpointing_factor if checkpointing else cost.activation_factor
    return int(factor * one_pass.activation_bytes(checkpointing=checkpointing))


def library_bytes(setup: TrainingSetup) -> int:
    """Memory of libraries; on the CPU they keep kernels for every shape of a bf16 product."""
    cost = setup.cost_model
    # fp16 was measured where it has no kernels of its own: there nothing is kept.
    further = setup.num_lengths - 1 if setup.dtype is torch.bfloat16 else 0
    narrow = cost.narrow_bytes if setup.dtype.itemsize < 4 else 0
    return cost.library_bytes + narrow + min(cost.length_bytes * further, cost.max_length_bytes)


def waiting_bytes(setup: TrainingSetup) -> int:
    """Host memory of the batches of a step that wait while the first is trained on.

    Their latents, their noise, and the noise as optimal transport couples it; for all clips of the step, the costs and
    the plan of that coupling.
    """
    params, batch = setup.params, setup.batch
    others = (params.gradient_accumulation - 1) * batch.num_clips
    clip = 4 * ModelConfig(setup.config).latent_channels * batch.num_frames
    coupling = 4 * 4 * (others + batch.num_clips) ** 2 if others and params.optimal_transport else 0
    return 3 * clip * others + coupling


def weights_bytes(setup: TrainingSetup) -> int:
    """The frozen base as it is stored; 8-bit weights have an fp32 scale per row."""
    network, itemsize = setup.network, setup.dtype.itemsize
    if setup.params.base_quantization == "none":
        return itemsize * network.num_values
    return network.block_values + 4 * network.block_rows + itemsize * (network.num_values - network.block_values)


def autoencoder_bytes(setup: TrainingSetup, activations: int) -> int:
    """The autoencoder and its work, if audio is encoded inside the loop.

    Encoding and steps alternate and share memory, except that of CUDA graphs, which is never freed.
    """
    if setup.clip_samples is None:
        return 0
    weights, working = encoding_bytes(setup.config, setup.clip_samples, setup.autoencoder_dtype)
    return weights + (working if setup.cost_model is CUDA_GRAPHS else max(working - activations, 0))
