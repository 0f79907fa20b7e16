"""The same bits every time on the same machine, on CUDA too; or, where that is not wanted, whatever is fastest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def deterministic_algorithms(
    device: torch.device, deterministic: bool = True, say: Callable[[str], None] = lambda line: None
) -> Iterator[None]:
    """Let CUDA use only kernels that add up in a fixed order; the CPU's do at a fixed number of threads.

    The fastest backward passes of attention add in the order in which blocks happen to finish, so that two trainings
    with one seed drift apart from the first step. Differential attention has kernels of its own in 16 bits, ordered
    and as fast (`differential`): a step of 4091 frames takes 117.4 ms and without order 116.4. Where attention has one
    map, order costs some 7 % at 1292 frames.

    Args:
        deterministic: False lets CUDA take any kernel; nothing else knows two ways.
        say: is told where two runs may differ, and where the choice makes no difference.
    """
    if remark := remark_on(device, deterministic):
        say(remark)
    if device.type != "cuda":
        yield
        return
    # Torch asks for this before it calls cuBLAS in a fixed order; it gives cuBLAS such a workspace anyhow.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(deterministic)
    # Else cuDNN rounds the factors of float32 convolutions to 10 bits, at some lengths and not at others.
    rounds, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    # Every value is written before it is read here, so filling new tensors beforehand would only cost time.
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = filled
        torch.backends.cudnn.allow_tf32 = rounds


def remark_on(device: torch.device, deterministic: bool) -> str:
    """In words, why two runs of one request may differ in their last bits, or cannot; empty where that is as usual."""
    if device.type == "cuda" and not deterministic:
        return "deterministic is off: the fastest kernels, and two runs with one seed differ in their last bits"
    if device.type == "mps":
        return "not tested on mps: two runs with one seed may differ in their last bits"
    if not deterministic:
        return f"deterministic off has no effect on {device.type}, which adds in a fixed order anyhow"
    return ""
