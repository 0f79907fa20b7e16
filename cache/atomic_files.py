"""Files that appear whole or not at all: written aside, fsynced, renamed. Light: standard library only.

A temporary lies beside its final name and is called `<final name>.<machine>-<pid>-<random>.tmp`. Whoever writes into a
folder first sweeps the temporaries of dead writers from it. A writer counts as dead when its pid is gone on this very
machine, or when its file has not grown for an hour: no writer here pauses for minutes, and a pid says nothing about a
writer on another machine of a shared disk, or on Windows. Were a living writer's file swept all the same, its rename
would fail with WriteFailed: nothing false ever gets a final name.
"""

from __future__ import annotations

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
_OURS: set[str] = set()
"""Temporaries this process is writing now. In a container every writer may have the same pid."""


LASTING = ("file", "folder")
"""What is fsynced: the content, and the name it gets."""


@contextmanager
def written_aside(final: Path, *, keep_first: bool = False, fsync: Container[str] = LASTING) -> Iterator[BinaryIO]:
    """A file to write that gets its final name when the block ends well, and vanishes when it does not.

    Args:
        keep_first: a file already under the final name stays as it is (sealed files never change), even when it
            appeared while ours was being written; otherwise ours takes its place.
        fsync: less than `LASTING` where another file right behind makes the name last, or where the content can be
            found again and whoever reads it notices when a power failure took it.

    Raises:
        WriteFailed: the disk is full, or the folder refuses.
    """
    temporary = final.with_name(f"{final.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp")
    _OURS.add(temporary.name)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        sweep(final.parent)
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            if "file" in fsync:
                os.fsync(file.fileno())
        _give_name(temporary, final, keep_first)
        if "folder" in fsync:
            fsync_directory(final.parent)
    except OSError as error:
        raise write_failed(final, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
        _OURS.discard(temporary.name)


def write_aside(final: Path, content: bytes | memoryview, *, fsync: Container[str] = LASTING) -> None:
    """`written_aside` for content that is at hand."""
    with written_aside(final, fsync=fsync) as file:
        file.write(content)


def write_failed(final: Path, error: OSError) -> WriteFailed:
    """The error for a person, with the room left on that disk."""
    try:
        free = shutil.disk_usage(final.parent).free
    except OSError:
        free = None
    return WriteFailed(final, error.strerror or str(error), free)


def sweep(folder: Path) -> list[Path]:
    """Delete the temporaries of dead writers from one folder (not from those inside it); return them."""
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if entry.name.endswith(".tmp")]
    dead = [path for path in found if _is_abandoned(path)]
    for path in dead:
        with suppress(OSError):  # another sweeper was faster, or Windows still has it open
            path.unlink()
    return dead


def fsync_directory(folder: Path) -> None:
    """Make renames inside a folder last. Windows cannot open a folder, and needs no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Make a finished file's bytes last."""
    with path.open("rb+") as file:  # Windows refuses to fsync what is open for reading only
        os.fsync(file.fileno())


def _give_name(temporary: Path, final: Path, keep_first: bool) -> None:
    if not keep_first:
        temporary.replace(final)
        return
    try:
        os.link(temporary, final)  # unlike a rename, a link never takes the place of another file
    except FileExistsError:
        return
    except OSError:  # a disk without hard links: the gap between look and rename is all that is left
        if not final.exists():
            temporary.replace(final)


def _is_abandoned(temporary: Path) -> bool:
    """True when nobody can still be writing this temporary; False for files that are not ours to judge."""
    match = _TEMPORARY.search(temporary.name)
    if match is None or temporary.name in _OURS:
        return False
    if match["machine"] == _machine() and not _is_alive(int(match["pid"])):
        return True
    try:
        return time.time() - temporary.stat().st_mtime > STALE_AFTER_SECONDS
    except OSError:
        return False


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # asked only about temporaries that are not in _OURS: an earlier process had our pid
    if os.name == "nt":
        return True  # os.kill(pid, 0) would send Ctrl-C there; age decides
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it lives and is another user's
    return True


@lru_cache(maxsize=1)
def _machine() -> str:
    """Eight hex digits for where a pid means something: the host, and on Linux the pid namespace of a container."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return f"{zlib.crc32(f'{node()} {namespace}'.encode()):08x}"
