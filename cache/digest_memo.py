"""Digests remembered per file, so that a second look costs a stat instead of a read. Light: standard library only."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache.disposable_sqlite import Ledger, row_check, warn
from cache.fingerprint import digest_file

RACY_SECONDS = 2.0
"""Coarsest timestamp of a common file system (FAT): a younger file may change again without a new mtime."""

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS memo (
    path TEXT, what TEXT, num_bytes INTEGER, mtime_ns INTEGER, inode TEXT, value TEXT, row_check INTEGER,
    PRIMARY KEY (path, what)
) WITHOUT ROWID
"""
_SEEN = "num_bytes, mtime_ns, inode, value, row_check"
Row = tuple[Any, ...]
Stamp = tuple[int, int, str]
"""(size, mtime in ns, inode) of a file; the inode as text, because Windows has ones beyond sqlite's integers."""


class DigestMemo:
    """What was found out about a file, valid while its size, mtime and inode stay as they were.

    Use it as recall, (read the file), remember: recall notes how the file looked before it was read, and remember keeps
    nothing about a file that changed since, or that was younger than two seconds then. Several processes may share one.
    """

    def __init__(self, file: Path, say: Callable[[str], None] = warn) -> None:
        self._ledger = Ledger(file, _SCHEMA, _VERSION, say)
        self._before: dict[tuple[str, str], tuple[Stamp, float]] = {}
        self._foreseen: dict[str, tuple[str, dict[str, Row]]] = {}
        """By what is asked: the folder, and the rows about files below it."""

    def __reduce__(self) -> tuple[type[DigestMemo], tuple[Path]]:
        return type(self), (self._ledger.file,)

    def recall(self, path: Path, what: str) -> str | None:
        """What is remembered about this very state of the file, or None."""
        name, stamp = str(path.absolute()), _stamp(path)
        self._before[name, what] = (stamp, time.time())
        for *seen, value, check in self._rows(_text(name), what):
            if tuple(seen) == stamp and check == row_check(_text(name), what, *stamp, value):
                return str(value)
        return None

    def foresee(self, folder: Path, what: str) -> None:
        """Fetch what is remembered about all files below a folder, of which each will be recalled: one query for all.

        What other processes remember from now on is not seen; then a file is read once more.
        """
        below = _text(f"{folder.absolute()}{os.sep}")
        behind = below[:-1] + chr(ord(os.sep) + 1)
        query = f"SELECT path, {_SEEN} FROM memo WHERE path >= ? AND path < ? AND what = ?"
        rows = self._ledger.rows(query, (below, behind, what))
        self._foreseen[what] = (below, {name: tuple(row) for name, *row in rows})

    def _rows(self, name: str, what: str) -> list[Row]:
        """What is remembered about one file, in the order of `_SEEN`."""
        below, rows = self._foreseen.get(what, ("\0", {}))
        if name.startswith(below):
            return [rows[name]] if name in rows else []
        return self._ledger.rows(f"SELECT {_SEEN} FROM memo WHERE path = ? AND what = ?", (name, what))

    def remember(self, path: Path, what: str, value: str) -> None:
        """Keep what was found out by reading the file since it was last recalled (or just now)."""
        name, now = str(path.absolute()), _stamp(path)
        before, looked_at = self._before.pop((name, what), (now, time.time()))
        if before != now or now[1] / 1e9 > looked_at - RACY_SECONDS:
            return
        row = (_text(name), what, *now, value)
        if _text(name).startswith(self._foreseen.get(what, ("\0", {}))[0]):
            self._foreseen[what][1][_text(name)] = (*now, value, row_check(*row))
        self._ledger.change([("INSERT OR REPLACE INTO memo VALUES (?, ?, ?, ?, ?, ?, ?)", [(*row, row_check(*row))])])

    def digest(self, path: Path) -> str:
        """`sha256:<hex>` of the file's bytes, read only when it changed since the last time."""
        known = self.recall(path, "bytes")
        if known is None:
            known = digest_file(path)
            self.remember(path, "bytes", known)
        return known


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, str(status.st_ino)


def _text(name: str) -> str:
    """A path that sqlite can store: names that are not UTF-8 hold surrogates, which it refuses."""
    return name.encode("utf-8", "backslashreplace").decode()
