"""Digests remembered per file, so that a second look costs a stat instead of a read. Light: standard library only."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cache.fingerprint import digest_file
from cache.ledger import Ledger, row_check, warn

RACY_SECONDS = 2.0
"""Coarsest timestamp of a common file system (FAT): a younger file may change again without a new mtime."""

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS memo (
    path TEXT, what TEXT, num_bytes INTEGER, mtime_ns INTEGER, inode TEXT, value TEXT, row_check INTEGER,
    PRIMARY KEY (path, what)
) WITHOUT ROWID
"""
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

    def __reduce__(self) -> tuple[type[DigestMemo], tuple[Path]]:
        return type(self), (self._ledger.file,)

    def recall(self, path: Path, what: str) -> str | None:
        """What is remembered about this very state of the file, or None."""
        name, stamp = str(path.absolute()), _stamp(path)
        self._before[name, what] = (stamp, time.time())
        query = "SELECT num_bytes, mtime_ns, inode, value, row_check FROM memo WHERE path = ? AND what = ?"
        for *seen, value, check in self._ledger.rows(query, (_text(name), what)):
            if tuple(seen) == stamp and check == row_check(_text(name), what, *stamp, value):
                return str(value)
        return None

    def remember(self, path: Path, what: str, value: str) -> None:
        """Keep what was found out by reading the file since it was last recalled (or just now)."""
        name, now = str(path.absolute()), _stamp(path)
        before, looked_at = self._before.pop((name, what), (now, time.time()))
        if before != now or now[1] / 1e9 > looked_at - RACY_SECONDS:
            return
        row = (_text(name), what, *now, value)
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
