"""What a training will need, before anything is loaded: memory of the device, and time.

What a step holds and computes is counted exactly (`rehearsal`). What a device makes of it is not: its allocator, its
compiler and its kernels are four factors and an allowance for each way of stepping, measured and kept in one table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from stages.model_config import ModelConfig
from stages.train.forecast.device_speed import Speed
from stages.train.forecast.dry_run import Rehearsed, Size, encoding_bytes, rehearsed, rehearsed_at
from stages.train.stage import TrainParams

GIB, MIB = 1 << 30, 1 << 20
ERROR = 0.25
"""How far memory may lie beside the estimate, as a share of it: the largest deviation measured is smaller."""

MOMENTS = {"adamw": 2, "lion": 1, "prodigy": 4}
"""Tensors like the adapter that each optimiser keeps."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """What becomes of a counted step on a device, in one way of stepping. Each figure is fitted to measurements."""

    held: float
    """Memory taken per byte counted. A compiler computes again what is cheap; a heap on the CPU has holes."""
    held_recomputing: float
    """The same where blocks are computed again in the backward."""
    allowance_bytes: int
    """Of libraries: their code, kernels and workspaces."""
    narrow_bytes: int = 0
    """Further, with products in 16 bits."""
    length_bytes: int = 0
    """Further in bf16, for each length of batch but the first: kernels are made for every shape and kept."""
    lengths_bytes: int = 0
    """Most of that: then the oldest are let go."""
    products: float
    """Time per time that the products would take at the speed of a large one."""
    attention: float
    """The same for attention."""
    moved: float
    """Time per time that all bytes would take to be read and written once."""
    starts: float = 0.0
    """Operations take the host this many times as long as a bare one."""
    operation_seconds: float = 0.0
    """In place of that, where operations are recorded and replayed."""


RECORDED = Manner(
    held=0.8,
    held_recomputing=1.2,
    allowance_bytes=int(0.5 * GIB),
    products=1.4,
    attention=2.0,
    moved=0.15,
    operation_seconds=6e-7,
)
"""CUDA, compiled, recorded and replayed; fitted on an H200 in bf16."""
PLAIN_CUDA = Manner(
    held=1.0,
    held_recomputing=1.0,
    allowance_bytes=int(0.3 * GIB),
    products=1.5,
    attention=5.0,
    moved=0.5,
    starts=11.0,
)
HOST = Manner(
    held=1.45,
    held_recomputing=2.7,
    allowance_bytes=95 * MIB,
    narrow_bytes=55 * MIB,
    length_bytes=38 * MIB,
    lengths_bytes=850 * MIB,
    products=0.8,
    attention=0.55,
    moved=5.8,
    starts=2.2,
)
"""The CPU, fitted on one thread with glibc's heap. MPS, where nothing was measured, is taken to be like it."""


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """A training that may be made: all that decides what it needs."""

    config: Mapping[str, Any]
    """model_config.json."""
    params: TrainParams
    size: Size
    """Of the largest batch that goes through the network at a time."""
    alone: Size | None = None
    """Of the longest clip by itself, as it goes through where it is beyond a budget of frames."""
    dtype: torch.dtype
    """Of the base and of what flows through it, as the device can do it."""
    device: torch.device
    plain: bool = False
    """One operation after the other, even where steps could be recorded."""
    checkpointing: bool = False
    clip_samples: int | None = None
    """Of the longest excerpt, where audio is encoded inside the loop."""
    autoencoder_dtype: torch.dtype = torch.float32
    clips_bytes: int = 0
    """Latents kept and audio read ahead, where the device's memory is the host's."""
    num_lengths: int = 1
    """Different lengths of batches, where the device keeps something for each."""

    @property
    def manner(self) -> Manner:
        """How it steps if nothing hinders it."""
        if self.device.type != "cuda":
            return HOST
        recordable = self.params.optimizer == "adamw" and self.params.base_quantization == "none"
        return RECORDED if recordable and not self.plain else PLAIN_CUDA


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a training needs, by part."""

    weights_bytes: int
    adapter_bytes: int
    """Its fp32 values, their gradients, the optimiser's moments and the average."""
    activation_bytes: int
    """What the largest batch leaves for the backward, and what the backward adds."""
    encoding_bytes: int
    """The autoencoder and its work, where that is part of the training."""
    allowance_bytes: int
    clips_bytes: int = 0
    """Of `Prospect.clips_bytes`, and of the other batches of a step where those lie in the device's memory too."""
    start_bytes: int = 0
    """All that is held before the first step, where that may be more than later."""
    seconds_per_step: float | None = None
    """None: the speed of the device is not known."""

    @property
    def step_bytes(self) -> int:
        """Held while steps are made."""
        parts = (self.weights_bytes, self.adapter_bytes, self.activation_bytes, self.encoding_bytes, self.clips_bytes)
        return sum(parts) + self.allowance_bytes

    @property
    def total_bytes(self) -> int:
        """The most that is held at any time."""
        return max(self.step_bytes, self.start_bytes)

    def parts(self) -> str:
        """Those that matter, in words."""
        if self.start_bytes > self.step_bytes:
            return f"to load the base before it is stored in 8 bits; {amount(self.step_bytes)} after that"
        named = {
            "weights": self.weights_bytes,
            "adapter": self.adapter_bytes,
            "activations": self.activation_bytes,
            "autoencoder": self.encoding_bytes,
            "clips": self.clips_bytes,
            "libraries": self.allowance_bytes,
        }
        return ", ".join(f"{name} {amount(size)}" for name, size in named.items() if size > 0)

    @property
    def least_bytes(self) -> int:
        """The low end of the error: what does not even hold this is full for certain."""
        return int(self.total_bytes * (1 - ERROR))


def estimated(prospect: Prospect, speed: Speed | None = None) -> Estimate:
    """Memory and time of a training, from its settings alone.

    Raises:
        FilterMatchesNothing: include or exclude name no layer.
        UnsupportedModelConfig.
    """
    counted, params, manner = count_of(prospect), prospect.params, prospect.manner
    copies = 2 + MOMENTS[params.optimizer] + (params.ema_decay is not None)
    held = manner.held_recomputing if prospect.checkpointing else manner.held
    activations = int(held * (counted.held_bytes + counted.passing_bytes))
    allowance = allowance_bytes(prospect)
    return Estimate(
        weights_bytes=weights_bytes(counted, prospect),
        adapter_bytes=4 * (copies * counted.trained_values + counted.singular_values),
        activation_bytes=activations,
        encoding_bytes=_encoding(prospect, activations),
        allowance_bytes=allowance,
        clips_bytes=prospect.clips_bytes + (0 if prospect.device.type == "cuda" else waiting_bytes(prospect)),
        start_bytes=start_bytes(counted, prospect) + allowance,
        seconds_per_step=None if speed is None else seconds_of(counted, prospect, speed),
    )


def count_of(prospect: Prospect) -> Rehearsed:
    """The rehearsal of one pass; remembered, for most settings leave it as it is."""
    params = prospect.params
    layers = TrainParams(
        model=params.model,
        adapter_type=params.adapter_type,
        rank=params.rank,
        include=params.include,
        exclude=params.exclude,
    )
    config = json.dumps(prospect.config, sort_keys=True)

    def step(size: Size) -> Rehearsed:
        return _remembered(config, layers, size, prospect.dtype, prospect.checkpointing)

    return rehearsed_at(prospect.size, step)


@lru_cache(64)
def _remembered(config: str, params: TrainParams, size: Size, dtype: torch.dtype, checkpointing: bool) -> Rehearsed:
    return rehearsed(json.loads(config), params, size, dtype, checkpointing=checkpointing)


def allowance_bytes(prospect: Prospect) -> int:
    """Of libraries; on the CPU those keep kernels for every shape of a product in bf16."""
    manner = prospect.manner
    if prospect.dtype.itemsize >= 4:
        return manner.allowance_bytes
    # fp16 was measured where it has no kernels of its own: there nothing is kept.
    further = prospect.num_lengths - 1 if prospect.dtype is torch.bfloat16 else 0
    return manner.allowance_bytes + manner.narrow_bytes + min(manner.length_bytes * further, manner.lengths_bytes)


def waiting_bytes(prospect: Prospect) -> int:
    """Held by the host of a step's other batches, all read before the first is learned from.

    Their latents, noise and the noise as it is dealt out; and of all clips of the step, the costs and plan of dealing.
    """
    params, size = prospect.params, prospect.size
    others = (params.gradient_accumulation - 1) * size.num_clips
    clip = 4 * ModelConfig(prospect.config).latent_channels * size.num_frames
    dealing = 4 * 4 * (others + size.num_clips) ** 2 if others and params.optimal_transport else 0
    return 3 * clip * others + dealing


def start_bytes(counted: Rehearsed, prospect: Prospect) -> int:
    """Of the base as it is loaded and the adapter on it, with which a stored base is compared."""
    adapter = 4 * (counted.trained_values + counted.singular_values)
    return prospect.dtype.itemsize * (counted.block_values + counted.other_values) + adapter


def weights_bytes(counted: Rehearsed, prospect: Prospect) -> int:
    """Of the frozen base as it is stored; 8-bit matrices have an fp32 scale for every row."""
    wide = prospect.dtype.itemsize
    if prospect.params.base_quantization == "none":
        return wide * (counted.block_values + counted.other_values)
    return counted.block_values + 4 * counted.block_rows + wide * counted.other_values


def _encoding(prospect: Prospect, activation_bytes: int) -> int:
    """Of the autoencoder. Its work and a step take turns, but what a recorded step holds is held for ever."""
    if prospect.clip_samples is None:
        return 0
    weights, working = encoding_bytes(prospect.config, prospect.clip_samples, prospect.autoencoder_dtype)
    return weights + (working if prospect.manner is RECORDED else max(working - activation_bytes, 0))


def seconds_of(counted: Rehearsed, prospect: Prospect, speed: Speed) -> float:
    """Of one step: products, attention, bytes moved and operations started, one after the other."""
    manner = prospect.manner
    starting = manner.starts * speed.operation_seconds + manner.operation_seconds
    one_pass = (
        manner.products * counted.product_flops / speed.flops_per_second
        + manner.attention * counted.attention_flops / speed.flops_per_second
        + manner.moved * counted.moved_bytes / speed.bytes_per_second
        + starting * counted.operations
    )
    return prospect.params.gradient_accumulation * one_pass


def amount(size: int) -> str:
    """Bytes for people."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size / MIB:,.0f} MiB"
