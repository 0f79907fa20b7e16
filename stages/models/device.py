"""Which device works, in which precision, and what to say when it is not what was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stages.errors import DeviceNotFound, OutOfMemory
from stages.precision import DTYPE_NAMES, PRECISIONS


def dtype_named(name: str) -> torch.dtype:
    """torch's dtype of a precision: `bf16` or `bfloat16`, `fp16` or `float16`, `fp32` or `float32`."""
    dtype: torch.dtype = getattr(torch, DTYPE_NAMES.get(name, name))
    return dtype


def precision_of(dtype: torch.dtype) -> str:
    """`bf16`, `fp16` or `fp32`."""
    return PRECISIONS[str(dtype).removeprefix("torch.")]


def pick_device(name: str) -> torch.device:
    """The device asked for; `auto` takes CUDA, then MPS, then the CPU."""
    if name != "auto":
        return _present(torch.device(name))
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _present(device: torch.device) -> torch.device:
    """Raises DeviceNotFound where this machine, or this build of torch, has none."""
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceNotFound(str(device), f"torch sees {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceNotFound(str(device), "torch sees no MPS device")
    return device


def set_threads(threads: int) -> None:
    """CPU threads of torch; 0 leaves torch's own choice."""
    if threads > 0:
        torch.set_num_threads(threads)


FEW_THREADS_WIDTH = 256


def training_threads(threads: int, width: int) -> int:
    """CPU threads to train with: those asked for, else one for networks this narrow, else as torch chooses (0).

    The operations of a narrow network are too short to be shared out: measured on tiny-base on two busy cores, a step
    takes 54 ms with one thread and 485 ms with two, which spend the time waiting for each other.
    """
    return 1 if threads == 0 and width <= FEW_THREADS_WIDTH else threads


def usable_dtype(wanted: torch.dtype, device: torch.device, say: Callable[[str], None]) -> torch.dtype:
    """`wanted` where the device multiplies in it, else float32, with a line that says so."""
    try:
        probe = torch.ones(8, 8, device=device, dtype=wanted)
        torch.nn.functional.linear(probe, probe)
    except (RuntimeError, TypeError) as error:
        say(f"{device} cannot compute in {wanted} ({error}); using float32")
        return torch.float32
    return wanted


_INSTRUCTIONS = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}
"""x86-64 processors that have any of these multiply in that precision."""


def slow_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this processor multiplies in `dtype` by way of float32; False too where torch cannot tell.

    A step of a 512-wide network, one thread: bf16 takes 0.6 of the time of fp32 where the processor has it, 1.4 times
    as long with AVX-512 alone, 19 times with AVX2. fp16 took 14 times as long on a processor without it.
    """
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if device.type != "cpu" or known.get("architecture") != "x86_64":
        return False
    return dtype in _INSTRUCTIONS and not any(known.get(name) for name in _INSTRUCTIONS[dtype])


_SAID_OF_MEMORY = re.compile(
    r"out of memory|can(no|')t allocate memory|not enough memory|bad_alloc|could not create a primitive$",
    re.IGNORECASE | re.MULTILINE,
)
"""By torch's allocators, and by the library of the CPU's products, which says no more than that."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short: where torch has no exception of its own for that, as on the CPU, by what it says."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _SAID_OF_MEMORY.search(str(error).strip()) is not None


@contextmanager
def explain_out_of_memory(what: str, device: torch.device) -> Iterator[None]:
    """Within, work other than a step. Raises: OutOfMemory, saying that it was this work that did not fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(str(device), what) from error
