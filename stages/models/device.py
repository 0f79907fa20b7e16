"""Picks devices and precisions that work here, and recognises out-of-memory errors."""

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
    """The device of a name; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        DeviceNotFound: this machine, or this build of PyTorch, does not have it.
    """
    if name != "auto":
        return _existing(torch.device(name))
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _existing(device: torch.device) -> torch.device:
    """The device itself. Raises DeviceNotFound."""
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceNotFound(str(device), f"torch sees {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceNotFound(str(device), "torch sees no MPS device")
    return device


def set_threads(threads: int) -> None:
    """Set the CPU threads of PyTorch; 0 keeps its default."""
    if threads > 0:
        torch.set_num_threads(threads)


FEW_THREADS_WIDTH = 256
"""Width of a transformer up to which one CPU thread trains fastest."""


def training_threads(threads: int, width: int) -> int:
    """CPU threads to train or sample with: `threads` unless 0, else 1 for narrow networks, else 0 (PyTorch's default).

    The operations of a narrow network are too short to parallelise: on tiny-base on two busy cores, a step takes 54 ms
    with one thread and 485 ms with two, which spend the time waiting for each other; 40 evaluations of a clip of 5 s
    take 5 s and 88 s.
    """
    return 1 if threads == 0 and width <= FEW_THREADS_WIDTH else threads


def usable_dtype(wanted: torch.dtype, device: torch.device, say: Callable[[str], None]) -> torch.dtype:
    """`wanted` if the device can multiply in it, else float32, reported by `say`."""
    try:
        probe = torch.ones(8, 8, device=device, dtype=wanted)
        torch.nn.functional.linear(probe, probe)
    except (RuntimeError, TypeError) as error:
        say(f"{device} cannot compute in {wanted} ({error}); using float32")
        return torch.float32
    return wanted


_NATIVE_INSTRUCTIONS = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}
"""x86-64 instruction sets that multiply natively in a precision; any one is enough."""


def slow_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this CPU emulates `dtype` through float32, and so is slower in it; False also where that is unknown.

    A step of a 512-wide network on one thread: bf16 takes 0.6 of the time of fp32 with native instructions, 1.4 times
    as long with AVX-512 alone, 19 times with AVX2. fp16 took 14 times as long on a processor without it.
    """
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if device.type != "cpu" or known.get("architecture") != "x86_64":
        return False
    return dtype in _NATIVE_INSTRUCTIONS and not any(known.get(name) for name in _NATIVE_INSTRUCTIONS[dtype])


_OUT_OF_MEMORY_MESSAGE = re.compile(
    r"out of memory|can(no|')t allocate memory|not enough memory|bad_alloc|could not create a primitive$",
    re.IGNORECASE | re.MULTILINE,
)
"""Messages of PyTorch's allocators, and of oneDNN, which reports nothing more specific."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: by its type, or by the message of a RuntimeError, as on CPUs."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY_MESSAGE.search(str(error).strip()) is not None


@contextmanager
def explain_out_of_memory(what: str, device: torch.device) -> Iterator[None]:
    """Context in which an out-of-memory error is raised as OutOfMemory, which names the activity `what`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(str(device), what) from error
