"""Settings of torch for training: the same bits every time on one machine, or the fastest kernels."""

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
    """Context in which CUDA uses only kernels that add in a fixed order, unless `deterministic` is False.

    On the CPU sums are in a fixed order anyhow, at a fixed number of threads.

    The fastest backward passes of attention add in the order in which blocks happen to finish, so two trainings with
    one seed drift apart from the first step. Differential attention has its own deterministic kernels in 16 bits, which
    are as fast (`differential`): a step of 4091 frames takes 117.4 ms, without a fixed order 116.4. Where attention has
    one map, the fixed order costs some 7 % at 1292 frames.

    Args:
        deterministic: False lets CUDA take any kernel; other devices ignore it.
        say: prints where two runs may differ, or that the setting has no effect.
    """
    if note := determinism_note(device, deterministic):
        say(note)
    if device.type != "cuda":
        yield
        return
    # torch refuses deterministic cuBLAS calls without this variable, though it passes such a workspace itself.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(deterministic)
    # Else cuDNN rounds the factors of float32 convolutions to 10 bits (TF32), at some lengths and not at others.
    allowed_tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    # Every value is written before it is read here, so filling new tensors beforehand would only cost time.
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = filled
        torch.backends.cudnn.allow_tf32 = allowed_tf32


def determinism_note(device: torch.device, deterministic: bool) -> str:
    """One line on why two runs with one seed may differ, or why the setting has no effect; empty in the usual case."""
    if device.type == "cuda" and not deterministic:
        return "deterministic is off: the fastest kernels, and two runs with one seed differ in their last bits"
    if device.type == "mps":
        return "not tested on mps: two runs with one seed may differ in their last bits"
    if not deterministic:
        return f"deterministic off has no effect on {device.type}, which always adds in a fixed order"
    return ""
