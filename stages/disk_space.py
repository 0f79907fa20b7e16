"""Compares what a stage will write with what is free, before it starts. Light: standard library only.

Estimates are lower bounds, so that no run is refused that would fit: a disk may fill up all the same while a stage
runs, and then the write that failed says so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.errors import InsufficientDiskSpace


@dataclass(frozen=True, kw_only=True)
class SpaceNeed:
    """What will be written into one folder."""

    what: str
    """Such as `checkpoints`."""
    folder: Path
    """May not exist yet."""
    flag: str
    """The option that names the folder, or one above it."""
    num_bytes: int
    """A lower bound."""
    remedy: str = ""
    """What else than more room would help, as a part of a sentence."""


def check_space(task: str, needs: Sequence[SpaceNeed]) -> None:
    """Compare needs with what is free, together where their folders are on one disk.

    Args:
        task: what needs the room, such as `this training`.

    Raises:
        InsufficientDiskSpace: for the first disk that is too small.
    """
    by_disk: dict[int, list[SpaceNeed]] = {}
    for need in needs:
        by_disk.setdefault(disk_of(need.folder), []).append(need)
    for on_disk in by_disk.values():
        largest = max(on_disk, key=lambda need: need.num_bytes)
        needed, free = sum(need.num_bytes for need in on_disk), free_bytes(largest.folder)
        if free is not None and needed > free:
            parts = [(need.what, need.num_bytes) for need in on_disk if need.num_bytes]
            raise InsufficientDiskSpace(task, parts, largest.folder, largest.flag, free, largest.remedy)


def disk_of(folder: Path) -> int:
    """The number of the disk that a folder lies on, or will lie on."""
    return existing_folder(folder).stat().st_dev


def existing_folder(folder: Path) -> Path:
    """The folder, or the innermost one above it that exists."""
    # `Path.is_dir` fails in a folder that may not be listed.
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if os.path.isdir(one))  # noqa: PTH112


def free_bytes(folder: Path) -> int | None:
    """Bytes that this user may still write on the disk of a folder; None where the system does not know.

    Root may also fill what a disk reserves. A file system without a size of its own says 0 of 0.
    """
    try:
        if hasattr(os, "statvfs"):
            usage = os.statvfs(existing_folder(folder))
            blocks = usage.f_bfree if os.geteuid() == 0 else usage.f_bavail
            return blocks * usage.f_frsize if usage.f_blocks else None
        return shutil.disk_usage(existing_folder(folder)).free
    except OSError:
        return None
