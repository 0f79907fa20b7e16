"""One cell of the grid measured: the fast path and the plain one, side by side in one process.

Both take the same twenty made-up batches from the same start, so beside every speed stands how far their losses differ.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.adapters._layer import AdaptedLayer
from stages.bench.cases import Case, config_of, new_batch, new_training
from stages.models._nets.attention import masked_attention, replace_attention
from stages.train.batches import Batch
from stages.train.captured import Stepper
from stages.train.lengths import Buckets
from stages.train.loop import Training
from stages.train.repeatable import repeatable

BATCHES = 20
BACKWARD_LINEAR, BACKWARD_ATTENTION = 1.0, 2.5
"""Work of the backward beside the forward's: frozen weights need no gradient of their own."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one way through the steps took."""

    step_ms: float
    """Median."""
    first_step_seconds: float
    peak_gib: float | None
    """Of device memory; None where torch does not count it."""
    losses: np.ndarray


def measure(case: Case, device: torch.device, steps: int, peak: float, say: Callable[[str], None]) -> dict[str, Any]:
    """One row of the table.

    Args:
        steps: how many of each kind are timed, after the first.
        peak: of a large matrix product on this device in the case's precision, per second.
    """
    work = flops_of(case, device)
    with repeatable(device):
        plain = timed(case, device, steps, stacked=False, say=say)
        fast = timed(case, device, steps, stacked=True, say=say)
    flops_per_second = work / fast.step_ms * 1e3
    return {
        **case.__dict__,
        "plain_ms": plain.step_ms,
        "fast_ms": fast.step_ms,
        "ratio": plain.step_ms / fast.step_ms,
        "frames_per_second": case.num_frames * case.batch_size / fast.step_ms * 1e3,
        "tflops_per_second": flops_per_second / 1e12,
        "share_of_limit": flops_per_second / peak,
        "first_step_seconds": fast.first_step_seconds,
        "plain_peak_gib": plain.peak_gib,
        "fast_peak_gib": fast.peak_gib,
        "largest_loss_difference": float(np.max(np.abs(fast.losses - plain.losses) / np.abs(plain.losses))),
    }


def timed(case: Case, device: torch.device, steps: int, *, stacked: bool, say: Callable[[str], None]) -> Measured:
    """Make some steps of a new training and look at the clock."""
    forget(device)
    training = new_training(case, config_of(case.model), device, stacked=stacked)
    training.network.train(True)
    batches = [new_batch(case, training, step) for step in range(min(steps + 1, BATCHES))]
    buckets = Buckets([case.num_frames]) if stacked else None
    with tempfile.TemporaryDirectory() as caches, Stepper(training, buckets, Path(caches), say) as stepper:
        first = seconds(device, lambda: stepper.advance(batches[0]))
        later = [batches[n % len(batches)] for n in range(1, steps + 1)]
        each = [seconds(device, partial(stepper.advance, batch)) for batch in later]
        training.history.settle()
        return Measured(
            step_ms=1e3 * statistics.median(each),
            first_step_seconds=first,
            peak_gib=torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
            losses=training.history.losses(1.0),
        )


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Of the clock, until the device is done."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def forget(device: torch.device) -> None:
    """Let go of what the last measurement left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


@torch.no_grad()
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Per second, of a large product of random matrices."""
    size = (8192 if dtype != torch.float32 else 4096) if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = [seconds(device, lambda: left @ right) for _ in range(8)]
    return 2 * size**3 / statistics.median(times[3:])


def flops_of(case: Case, device: torch.device) -> float:
    """Multiplications and additions of a step: forward, and backward to the input; recomputation does not count."""
    training = new_training(case, config_of(case.model), device, stacked=False)
    linear, attention = counted(training, new_batch(case, training).to(device))
    del training
    forget(device)
    return linear * (1 + BACKWARD_LINEAR) + attention * (1 + BACKWARD_ATTENTION)


@torch.no_grad()
def counted(training: Training, batch: Batch) -> tuple[float, float]:
    """Work of one forward in layers and in attention."""
    found = {"linear": 0.0, "attention": 0.0}

    def attend(query_BHND: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, valid: Tensor | None) -> Tensor:
        found["attention"] += 4.0 * query_BHND.numel() * key_BHSD.shape[-2]
        return masked_attention(query_BHND, key_BHSD, value_BHSD, valid)

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found["linear"] += 2.0 * num_in(layer) * output.numel()

    with hooked(training, count):
        replace_attention(training.network.denoiser, attend)
        training.network.velocity(batch, batch.noise_BCT)
    return found["linear"], found["attention"]


def num_in(layer: nn.Module) -> int:
    """Input features of an adapted layer."""
    assert isinstance(layer, AdaptedLayer)
    return layer.matrix().shape[1]


@contextmanager
def hooked(training: Training, hook: Callable[..., None]) -> Iterator[None]:
    """Within, `hook` sees the input and output of every adapted layer."""
    handles = [place.layer.register_forward_hook(hook) for place in training.network.adapter.places()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
