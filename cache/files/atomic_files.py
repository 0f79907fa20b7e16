"""Atomic file writes: to a temporary file, fsync, rename. Light: standard library only.

A temporary file lies in the folder of its target and is called `<target>.<machine>-<pid>-<random>.tmp`. Every writer
first removes the temporary files of dead writers from that folder. A writer counts as dead when its pid no longer runs
on this machine, or when its file has not grown for an hour: no writer here pauses for minutes, and a pid says nothing
about a writer on another machine of a shared disk, or on Windows. If the file of a live writer is removed all the same,
its rename fails with WriteFailed: no file with a final name is ever incomplete.
"""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from platform import node
from typing import BinaryIO

from cache.errors import WriteFailed

STALE_AFTER_SECONDS = 3600.0
_TEMPORARY = re.compile(r"\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{16}\.tmp$")
_FEW_INODES, _MUCH = 64, 1 << 26
"""What failed for want of inodes has given some back by the time it is explained: a disk with few of them and that
many bytes was out of inodes."""
_OWN_TEMPORARIES: set[str] = set()
"""Temporary files this process is writing now. In a container every writer may have the same pid."""

DURABLE = ("file", "folder")
"""What is fsynced by default: the content, and the folder that holds the name."""


@contextmanager
def atomic_write(target: Path, *, keep_existing: bool = False, fsync: Container[str] = DURABLE) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing; it is renamed to `target` when the block succeeds and removed when it fails.

    Args:
        keep_existing: a file that has the name already stays as it is (sealed files never change), even when it
            appeared while ours was being written; otherwise ours replaces it.
        fsync: less than `DURABLE` where a file written right afterwards makes the name durable, or where the content
            can be recomputed and its readers notice that a power failure destroyed it.

    Raises:
        WriteFailed: the disk is full, or the folder cannot be written to.
    """
    temporary = temporary_beside(target)
    _OWN_TEMPORARIES.add(temporary.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_temporaries(target.parent)
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            if "file" in fsync:
                os.fsync(file.fileno())
        _rename(temporary, target, keep_existing)
        if "folder" in fsync:
            fsync_directory(target.parent)
    except OSError as error:
        raise write_failure(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
        _OWN_TEMPORARIES.discard(temporary.name)


def atomic_write_bytes(target: Path, content: bytes | memoryview, *, fsync: Container[str] = DURABLE) -> None:
    """Writes or replaces a file with the given content; see `atomic_write`."""
    with atomic_write(target, fsync=fsync) as file:
        file.write(content)


def write_failure(target: Path, error: OSError) -> WriteFailed:
    """The error to raise for an OSError while writing, with the free space of that disk."""
    return WriteFailed(target, *failure_reason(target, error))


def failure_reason(path: Path, error: OSError) -> tuple[str, int | None]:
    """Why a path could not be used, and the bytes left on its disk, where both are known."""
    # `Path.is_dir` fails in a folder that may not be listed.
    folder = next((one for one in (path, *path.absolute().parents) if os.path.isdir(one)), path)  # noqa: PTH112
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        free = None
    if error.errno == errno.ENOSPC and _inodes_left(folder) < (1 if free is None or free < _MUCH else _FEW_INODES):
        return "no inode is left there, which every new file needs", None
    return error.strerror or str(error), free


def _inodes_left(folder: Path) -> float:
    """How many more files a disk can hold, however small; infinity for disks without a limit of their own."""
    try:
        usage = os.statvfs(folder)
    except (AttributeError, OSError):  # Windows; a folder that is gone
        return math.inf
    return usage.f_favail if usage.f_files else math.inf


def temporary_beside(target: Path) -> Path:
    """A name that no other writer has, under which a file of a dead process is removed later."""
    return target.with_name(f"{target.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp")


def remove_stale_temporaries(folder: Path) -> list[Path]:
    """Removes the temporary files of dead writers from one folder, not from its subfolders; returns their paths."""
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if entry.name.endswith(".tmp")]
    dead = [path for path in found if _is_abandoned(path)]
    for path in dead:
        with suppress(OSError):  # another process was faster, or Windows still has it open
            path.unlink()
    return dead


def fsync_directory(folder: Path) -> None:
    """Makes renames inside a folder durable. Windows cannot open a folder, and needs no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Makes the content of a finished file durable."""
    with path.open("rb+") as file:  # Windows refuses to fsync what is open for reading only
        os.fsync(file.fileno())


def _rename(temporary: Path, target: Path, keep_existing: bool) -> None:
    if not keep_existing:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)  # unlike a rename, a link never replaces another file
    except FileExistsError:
        return
    except OSError:  # a disk without hard links: another writer may still come between the check and the rename
        if not target.exists():
            temporary.replace(target)


def _is_abandoned(temporary: Path) -> bool:
    """True when nobody can still be writing this temporary file; False for files that no writer here makes."""
    match = _TEMPORARY.search(temporary.name)
    if match is None or temporary.name in _OWN_TEMPORARIES:
        return False
    if match["machine"] == _machine() and not _is_alive(int(match["pid"])):
        return True
    try:
        return time.time() - temporary.stat().st_mtime > STALE_AFTER_SECONDS
    except OSError:
        return False


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # only called for temporary files that are not in _OWN_TEMPORARIES: an earlier process had our pid
    if os.name == "nt":
        return True  # os.kill(pid, 0) would send Ctrl-C there, so the age of the file decides
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it runs, as another user
    return True


@lru_cache(maxsize=1)
def _machine() -> str:
    """Eight hex digits of what a pid is unique in: the host, and on Linux the pid namespace of a container."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return f"{zlib.crc32(f'{node()} {namespace}'.encode()):08x}"
