"""Free memory of devices and of the host."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60
"""The first version of control groups writes a number about this large where there is no limit."""


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device in bytes; None if it is unknown.

    On MPS it is the share of the machine's memory that Metal recommends, less what this process holds of it.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch's allocator has reserved and does not use is free as well.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return max(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory(), 0)
    return host_bytes() if device.type == "cpu" else None


def host_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Free memory of the host: the least of what the system, control groups and the address space limit leave.

    If none of them is known (macOS, Windows): half of the machine's memory, or None.
    """
    found = (_available(proc), _address_space(proc), *_control_groups(proc, cgroups))
    known = [left for left in found if left is not None]
    return min(known) if known else _half_of_machine()


def _available(proc: Path) -> int | None:
    """MemAvailable of Linux: unused memory and caches that can be dropped."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(proc / "meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _address_space(proc: Path) -> int | None:
    """What the address space limit (`ulimit -v`) leaves to this process; None without a limit."""
    try:
        import resource  # deferred: Windows has none
    except ImportError:
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = re.search(r"^VmSize:\s+(\d+) kB", _text(proc / "self" / "status"), re.MULTILINE)
    return None if most == resource.RLIM_INFINITY or used is None else max(most - int(used[1]) * 1024, 0)


def _control_groups(proc: Path, cgroups: Path) -> list[int | None]:
    """What the limits of the process's control groups, and of those above them, leave."""
    left: list[int | None] = []
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            left += [_left_in_version_2(folder) for folder in _with_parents(cgroups, path)]
        elif "memory" in controllers.split(","):
            left += [_left_in_version_1(folder) for folder in _with_parents(cgroups / "memory", path)]
    return left


def _with_parents(root: Path, path: str) -> list[Path]:
    """The group's folder and those above it. In a container the path may be the host's and not exist here."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [root.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _left_in_version_2(folder: Path) -> int | None:
    return _left(folder, "memory.max", "memory.current", "inactive_file")


def _left_in_version_1(folder: Path) -> int | None:
    return _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _left(folder: Path, limit: str, usage: str, droppable: str) -> int | None:
    most, used = _text(folder / limit).strip(), _text(folder / usage).strip()
    if not (most.isdigit() and used.isdigit()) or int(most) >= UNLIMITED:
        return None
    found = re.search(rf"^{droppable} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
    return max(int(most) - int(used) + (int(found[1]) if found else 0), 0)


def _text(path: Path) -> str:
    """Content of a file; empty if it is missing or not readable."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _half_of_machine() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None
