"""One cell of the grid measured: the fast path and the plain one, side by side.

Both take the same twenty made-up batches from the same start, so beside every speed stands how far their losses differ,
and beside memory what the estimate before a training says of it.
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
from stages.bench.timing import seconds
from stages.bench.useful_flops import useful_flops
from stages.train.cuda_graph.stepper import Stepper
from stages.train.dataset.length_buckets import LengthBuckets
from stages.train.determinism import deterministic_algorithms
from stages.train.forecast.estimate import GIB, estimated

BATCHES = 20


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
    plain_setup, fast_setup = (case.setup(place.device, dtype, eager=eager) for eager in (True, False))
    with deterministic_algorithms(place.device, case.deterministic):
        plain = timed_apart(case, place, stacked=False)
        fast = timed_apart(case, place, stacked=True)
    flops_per_second = useful_flops(fast_setup.network, fast_setup.batch) / fast.step_ms * 1e3
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
        "plain_gib_estimated": estimated(plain_setup).total / GIB,
        "fast_gib_estimated": estimated(fast_setup).total / GIB,
        "largest_loss_difference": float(np.max(np.abs(fast.losses - plain.losses) / np.abs(plain.losses))),
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
