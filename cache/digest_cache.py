"""Digests cached per file, so that an unchanged file costs a stat instead of a read. Light: standard library only."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache.files.disposable_sqlite import DisposableDatabase, row_checksum, warn
from cache.fingerprint import digest_file

RACY_SECONDS = 2.0
"""Coarsest mtime of a common file system (FAT): a file written since may change again with the same mtime."""
RACY_CHANGE_SECONDS = 0.1
"""Likewise for the time of a change, which the kernel takes from a clock of 1 to 10 ms; programs cannot set it back."""

_VERSION = 2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS memo (
    path TEXT, what TEXT, num_bytes INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode TEXT, value TEXT,
    row_check INTEGER,
    PRIMARY KEY (path, what)
) WITHOUT ROWID
"""
_COLUMNS = "num_bytes, mtime_ns, ctime_ns, inode, value, row_check"
Row = tuple[Any, ...]
"""The values of `_COLUMNS`."""
Stamp = tuple[int, int, int, str]
"""(size, mtime in ns, ctime in ns, inode) of a file; the inode as text, as those of Windows exceed sqlite's integers.

An edit in place that keeps size and mtime, as tag editors and synchronising tools make it, still moves the ctime.
"""


class DigestCache:
    """Values computed from files, valid while size, mtime, ctime and inode of the file are unchanged.

    Call `get`, read the file, then `put`: `get` records the state of the file before it was read, and `put` stores
    nothing about a file that has changed since, or was so young then that another change could go unseen. Processes
    may share one file.

    Args:
        read_only: `put` stores nothing.
    """

    def __init__(self, file: Path, say: Callable[[str], None] = warn, *, read_only: bool = False) -> None:
        self._read_only = read_only
        self._database = DisposableDatabase(file, _SCHEMA, _VERSION, say)
        self._before: dict[tuple[str, str], tuple[Stamp, float]] = {}
        self._prefetched: dict[str, tuple[str, dict[str, Row]]] = {}
        """For each kind of value: the folder, and the rows of the files below it."""

    def get(self, path: Path, what: str) -> str | None:
        """The value of one kind stored for this state of the file, or None."""
        name, stamp = str(path.absolute()), _stamp(path)
        self._before[name, what] = (stamp, time.time())
        for *stored, value, checksum in self._rows(_text(name), what):
            if tuple(stored) == stamp and checksum == row_checksum(_text(name), what, *stamp, value):
                return str(value)
        return None

    def prefetch(self, folder: Path, what: str) -> None:
        """Loads the rows of all files below a folder with one query, before `get` is called for each of them.

        Rows that other processes store from now on are not seen; those files are read once more.
        """
        below = _text(f"{folder.absolute()}{os.sep}")
        end = below[:-1] + chr(ord(os.sep) + 1)  # sorts after every path below the folder
        query = f"SELECT path, {_COLUMNS} FROM memo WHERE path >= ? AND path < ? AND what = ?"
        rows = self._database.query(query, (below, end, what))
        self._prefetched[what] = (below, {name: tuple(row) for name, *row in rows})

    def _rows(self, name: str, what: str) -> list[Row]:
        """The stored row of one file; empty when there is none."""
        below, rows = self._prefetched.get(what, ("\0", {}))
        if name.startswith(below):
            return [rows[name]] if name in rows else []
        return self._database.query(f"SELECT {_COLUMNS} FROM memo WHERE path = ? AND what = ?", (name, what))

    def put(self, path: Path, what: str, value: str) -> None:
        """Stores a value computed by reading the file since the last `get` (without one: just now)."""
        name, now = str(path.absolute()), _stamp(path)
        before, seen_at = self._before.pop((name, what), (now, time.time()))
        if self._read_only or before != now or _may_change_unseen(now, seen_at):
            return
        checksum = row_checksum(_text(name), what, *now, value)
        if _text(name).startswith(self._prefetched.get(what, ("\0", {}))[0]):
            self._prefetched[what][1][_text(name)] = (*now, value, checksum)
        row = (_text(name), what, *now, value, checksum)
        self._database.execute([("INSERT OR REPLACE INTO memo VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [row])])

    def digest(self, path: Path) -> str:
        """`sha256:<hex>` of the file's bytes; reads the file only when it changed since the last call."""
        known = self.get(path, "bytes")
        if known is None:
            known = digest_file(path)
            self.put(path, "bytes", known)
        return known


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, str(status.st_ino)


def _may_change_unseen(stamp: Stamp, seen_at: float) -> bool:
    """Whether the file was so young when it was seen that another change could leave the same stamp."""
    _, mtime_ns, ctime_ns, _ = stamp
    return mtime_ns / 1e9 > seen_at - RACY_SECONDS or ctime_ns / 1e9 > seen_at - RACY_CHANGE_SECONDS


def _text(name: str) -> str:
    """A path as sqlite can store it: a name that is not UTF-8 holds surrogates, which sqlite refuses."""
    return name.encode("utf-8", "backslashreplace").decode()
