"""Wall time of work on a device, and the speed of a large matrix product, to which steps are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

REPEATS = 5


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Wall seconds until the device has finished."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - started


@torch.no_grad()
def product_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Speed of a large product of random square matrices, counting multiplications and additions; median of five."""
    size = (8192 if dtype != torch.float32 else 4096) if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = [seconds(device, lambda: left @ right) for _ in range(REPEATS + 2)]
    return 2 * size**3 / statistics.median(times[2:])
