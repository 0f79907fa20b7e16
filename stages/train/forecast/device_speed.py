"""How fast a device is at the three things a step is made of: large products, moving bytes, starting operations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of one device in one precision."""

    flops_per_second: float
    """Of a large matrix product, multiplications and additions."""
    bytes_per_second: float
    """Read and written by an operation on tensors beyond the caches."""
    operation_seconds: float
    """Of the host, to start one small operation."""


REPEATS = 5
PRODUCT_SIZE = {"cuda": 4096}
"""Rows and columns of the matrices that are multiplied; elsewhere `SMALL_SIZE`."""
SMALL_SIZE = 512
COPIED_BYTES = {"cuda": 1 << 28}
SMALL_COPY_BYTES = 1 << 25
"""Beyond what a processor's caches hold."""


@torch.no_grad()
def measured_speed(device: torch.device, dtype: torch.dtype) -> Speed:
    """Look at the clock for a tenth of a second or so; nothing is kept."""
    count = COPIED_BYTES.get(device.type, SMALL_COPY_BYTES) // 4
    long, small = torch.zeros(count, device=device), torch.zeros(8, device=device)
    copying = median_seconds(device, lambda: long.add_(1.0))
    starting = median_seconds(device, lambda: [small.add(1.0) for _ in range(100)]) / 100
    return Speed(
        flops_per_second=product_flops(device, dtype, PRODUCT_SIZE.get(device.type, SMALL_SIZE), REPEATS),
        bytes_per_second=2 * long.nbytes / copying,
        operation_seconds=starting,
    )


@torch.no_grad()
def product_flops(device: torch.device, dtype: torch.dtype, size: int, repeats: int) -> float:
    """Per second, of a product of random square matrices."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(device, lambda: left @ right, repeats)


def median_seconds(device: torch.device, work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Of some calls after the first ones, which may load or compile what is needed."""
    times = [seconds(device, work) for _ in range(repeats + 2)]
    return statistics.median(times[2:])


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Of the clock, until the device is done."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - started
