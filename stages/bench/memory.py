"""Peak memory of a measurement, as counted by torch on CUDA and by Linux on the CPU."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CLEAR_PEAK = "5"


class PeakMemory:
    """Peak memory since `start`: allocated by torch on CUDA, and growth of the process on Linux."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = resident_bytes("VmRSS")
        """Bytes of the process before the first measurement."""

    def start(self) -> None:
        """Frees what the last measurement left, and resets the peak."""
        gc.collect()
        if self.device.type == "cuda":
            clear_cublas_workspaces()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.before is not None:
            trim_heap()
            CLEAR.write_text(CLEAR_PEAK, encoding="ascii")

    def gib(self) -> float | None:
        """GiB since `start`; None where neither torch nor the system counts it."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        peak = resident_bytes("VmHWM")
        return (
            None if self.device.type != "cpu" or self.before is None or peak is None else (peak - self.before) / 2**30
        )


def clear_cublas_workspaces() -> None:
    """Frees the workspaces that cuBLAS keeps for every stream: those of the last measurement are not used again."""
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()


def resident_bytes(name: str) -> int | None:
    """Resident memory of this process: current (`VmRSS`) or peak (`VmHWM`); None on systems other than Linux."""
    if not (STATUS.exists() and CLEAR.exists()):
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def trim_heap() -> None:
    """Makes glibc return free memory to the system; other C libraries keep it, and it is counted again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
