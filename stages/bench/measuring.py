"""One cell of the grid measured: the fast path and the plain one, side by side.

Both take the same twenty made-up batches from the same start, so beside every speed stands how far their losses differ,
and beside time and memory what the estimate before a training says of them.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.bench.cases import Case, config_of, new_batch, new_training
from stages.bench.memory import PeakMemory
from stages.train.cuda_graph.stepper import Stepper
from stages.train.dataset.length_buckets import LengthBuckets
from stages.train.determinism import deterministic_algorithms
from stages.train.forecast.check_memory import known_speed
from stages.train.forecast.device_speed import product_flops, seconds
from stages.train.forecast.dry_run import Rehearsed
from stages.train.forecast.estimate import GIB, Prospect, count_of, estimated

BATCHES = 20
BACKWARD_PRODUCTS, BACKWARD_ATTENTION = 1.0, 2.5
"""Work of the backward beside the forward's: frozen weights need no gradient of their own."""
REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one way through the steps took."""

    step_ms: float
    """Median."""
    first_step_seconds: float
    peak_gib: float | None
    """Of memory; None where it is not counted."""
    losses: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where cases are measured."""

    device: torch.device
    memory: PeakMemory
    say: Callable[[str], None]
    steps: int
    """How many of each kind are timed, after the first."""
    caches: Path
    """Compiled code: a row begins with what the rows before it have left."""
    apart: bool = True
    """On the CPU, where nobody but the system counts memory, measure in new processes: a used heap has holes."""


def measure(case: Case, place: Place, dtype: torch.dtype, limit: float) -> dict[str, Any]:
    """One row of the table.

    Args:
        dtype: in which the device does the case's precision.
        limit: products per second of a large matrix product on this device in that precision, times two.
    """
    counted = count_of(case.prospect(place.device, dtype, plain=False))
    with deterministic_algorithms(place.device, case.deterministic):
        plain = timed_apart(case, place, stacked=False)
        fast = timed_apart(case, place, stacked=True)
    flops_per_second = useful_flops(counted) / fast.step_ms * 1e3
    return {
        **case.__dict__,
        "plain_ms": plain.step_ms,
        "fast_ms": fast.step_ms,
        "ratio": plain.step_ms / fast.step_ms,
        "frames_per_second": case.num_frames * case.batch_size / fast.step_ms * 1e3,
        "tflops_per_second": flops_per_second / 1e12,
        "share_of_limit": flops_per_second / limit,
        "first_step_seconds": fast.first_step_seconds,
        "plain_peak_gib": plain.peak_gib,
        "fast_peak_gib": fast.peak_gib,
        **foretold("plain", case.prospect(place.device, dtype, plain=True)),
        **foretold("fast", case.prospect(place.device, dtype, plain=False)),
        "largest_loss_difference": float(np.max(np.abs(fast.losses - plain.losses) / np.abs(plain.losses))),
    }


def foretold(way: str, prospect: Prospect) -> dict[str, float | None]:
    """What a training says of itself before it begins: milliseconds of a step, and memory."""
    estimate = estimated(prospect, known_speed(prospect.device, prospect.dtype))
    each = estimate.seconds_per_step
    return {
        f"{way}_ms_estimated": None if each is None else 1e3 * each,
        f"{way}_gib_estimated": estimate.total_bytes / GIB,
    }


def timed_apart(case: Case, place: Place, *, stacked: bool) -> Measured:
    """`timed`, in a process of its own where `place` says so."""
    if place.device.type != "cpu" or not place.apart:
        return timed(case, place, stacked=stacked)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_timed_here, case, place.steps, torch.get_num_threads(), stacked).result()


def _timed_here(case: Case, steps: int, threads: int, stacked: bool) -> Measured:
    """In a new process."""
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as caches:
        say = partial(print, file=sys.stderr)
        place = Place(device=device, memory=PeakMemory(device), say=say, steps=steps, caches=Path(caches))
        return timed(case, place, stacked=stacked)


def timed(case: Case, place: Place, *, stacked: bool) -> Measured:
    """Make some steps of a new training and look at the clock."""
    device, steps = place.device, place.steps
    place.memory.start()
    training = new_training(case, config_of(case.model), device, stacked=stacked)
    training.network.train(True)
    batches = [new_batch(case, training, step) for step in range(min(steps + 1, BATCHES))]
    buckets = LengthBuckets([case.num_frames]) if stacked else None
    with Stepper(training, buckets, place.caches, place.say) as stepper:
        first = seconds(device, lambda: stepper.advance(batches[0]))
        later = [batches[n % len(batches)] for n in range(1, steps + 1)]
        each = [seconds(device, partial(stepper.advance, batch)) for batch in later]
        training.history.flush()
        return Measured(
            step_ms=1e3 * statistics.median(each),
            first_step_seconds=first,
            peak_gib=place.memory.gib(),
            losses=training.history.losses(1.0),
        )


def limit_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Per second, of a large product of random matrices."""
    size = (8192 if dtype != torch.float32 else 4096) if device.type == "cuda" else 1024
    return product_flops(device, dtype, size, REPEATS)


def useful_flops(counted: Rehearsed) -> float:
    """Multiplications and additions that a step cannot do without: the base forward, and backward to its input.

    What adapters add and what is computed again does not count.
    """
    products = counted.base_flops * (1 + BACKWARD_PRODUCTS)
    return products + counted.base_attention_flops * (1 + BACKWARD_ATTENTION)
