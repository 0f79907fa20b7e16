"""Measures one case: a training step on the fast path and on the plain path.

Both run on the same twenty random batches from the same start, so that their losses can be compared as well; the memory
measured is reported together with the memory that a training would have estimated.
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
from stages.processes import can_start_workers
from stages.train.cuda_graph.stepper import Stepper
from stages.train.dataset.length_buckets import LengthBuckets
from stages.train.determinism import deterministic_algorithms
from stages.train.forecast.estimate import GIB, memory_estimate

NUM_BATCHES = 20


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Time, memory and losses of the steps on one path."""

    step_ms: float
    """Median over the steps after the first."""
    first_step_seconds: float
    peak_gib: float | None
    """Peak memory; None where neither the device nor the system counts it."""
    losses: np.ndarray


@dataclass(frozen=True, kw_only=True)
class BenchEnvironment:
    """Device and settings that all cases share."""

    device: torch.device
    memory: PeakMemory
    say: Callable[[str], None]
    steps: int
    """Steps timed after the first."""
    caches: Path
    """Folder for compiled code, which later cases reuse."""
    isolated: bool = True
    """On the CPU, measure each case in a new process: memory is that of the process there, and a used heap is
    fragmented."""


def measure(case: Case, environment: BenchEnvironment, dtype: torch.dtype, limit: float) -> dict[str, Any]:
    """Measures a case; returns one row of the table.

    Args:
        dtype: the dtype the device uses for the case's precision.
        limit: flops per second of a large matrix product on this device in that dtype.
    """
    plain_setup, fast_setup = (case.setup(environment.device, dtype, eager=eager) for eager in (True, False))
    with deterministic_algorithms(environment.device, case.deterministic):
        plain = timed_in_isolation(case, environment, stacked=False)
        fast = timed_in_isolation(case, environment, stacked=True)
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
        "plain_gib_estimated": memory_estimate(plain_setup).total_bytes / GIB,
        "fast_gib_estimated": memory_estimate(fast_setup).total_bytes / GIB,
        "largest_loss_difference": float(np.max(np.abs(fast.losses - plain.losses) / np.abs(plain.losses))),
    }


def timed_in_isolation(case: Case, environment: BenchEnvironment, *, stacked: bool) -> Measurement:
    """Calls `timed`, in a new process where the environment asks for it."""
    if environment.device.type != "cpu" or not environment.isolated or not can_start_workers():
        return timed(case, environment, stacked=stacked)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_timed_on_cpu, case, environment.steps, torch.get_num_threads(), stacked).result()


def _timed_on_cpu(case: Case, steps: int, threads: int, stacked: bool) -> Measurement:
    """Calls `timed` in this new process."""
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as caches:
        say = partial(print, file=sys.stderr)
        environment = BenchEnvironment(
            device=device, memory=PeakMemory(device), say=say, steps=steps, caches=Path(caches)
        )
        return timed(case, environment, stacked=stacked)


def timed(case: Case, environment: BenchEnvironment, *, stacked: bool) -> Measurement:
    """Times the steps of a new training."""
    device, steps = environment.device, environment.steps
    environment.memory.start()
    training = new_training(case, config_of(case.model), device, stacked=stacked)
    training.network.train(True)
    batches = [new_batch(case, training, step) for step in range(min(steps + 1, NUM_BATCHES))]
    buckets = LengthBuckets([case.num_frames]) if stacked else None
    with Stepper(training, buckets, environment.caches, environment.say) as stepper:
        first = seconds(device, lambda: stepper.advance(batches[0]))
        later = [batches[n % len(batches)] for n in range(1, steps + 1)]
        each = [seconds(device, partial(stepper.advance, batch)) for batch in later]
        training.history.flush()
        return Measurement(
            step_ms=1e3 * statistics.median(each),
            first_step_seconds=first,
            peak_gib=environment.memory.gib(),
            losses=training.history.losses(1.0),
        )
