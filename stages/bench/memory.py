"""The most memory that a measurement held, as far as the device or the operating system keeps count."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CLEAR_PEAK = "5"


class PeakMemory:
    """Counts from `start` on. On CUDA what torch has handed out; on Linux what the process has grown by."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = resident("VmRSS")
        """Of the process before anything was measured."""

    def start(self) -> None:
        """Let go of what the last measurement left, and count anew."""
        gc.collect()
        if self.device.type == "cuda":
            drop_workspaces()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.before is not None:
            give_back()
            CLEAR.write_text(CLEAR_PEAK, encoding="ascii")

    def gib(self) -> float | None:
        """Since `start`; None where nobody counts."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        peak = resident("VmHWM")
        return (
            None if self.device.type != "cpu" or self.before is None or peak is None else (peak - self.before) / 2**30
        )


def drop_workspaces() -> None:
    """What cuBLAS keeps for every stream it has met: streams of the last measurement are not of this one."""
    drop = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if drop is not None:
        drop()


def resident(name: str) -> int | None:
    """Bytes of this process in memory, now (`VmRSS`) or at most (`VmHWM`); None where Linux does not tell."""
    if not (STATUS.exists() and CLEAR.exists()):
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def give_back() -> None:
    """Let glibc return free memory to the system; other libraries keep it, and count it again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
