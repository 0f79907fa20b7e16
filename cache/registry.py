"""Which shard holds which item: a rebuildable summary of a folder of shards. Light: standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.disposable_sqlite import Ledger, row_check, warn

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS shards (shard TEXT PRIMARY KEY, num_bytes INTEGER, mtime_ns INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
    item_key TEXT, shard TEXT, row INTEGER, num_frames INTEGER, checksum TEXT, row_check INTEGER,
    PRIMARY KEY (item_key, shard)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_of_shard ON items (shard)
"""
_KEYS_PER_QUERY = 500


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where one item lies."""

    item_key: str
    shard: str
    """File name inside the shelf's folder."""
    row: int
    num_frames: int
    checksum: str
    """crc32 of the item's bytes, eight hex digits."""


class Registry:
    """item key -> location, in one sqlite file that may be deleted at any time. Several processes may share one."""

    def __init__(self, file: Path, say: Callable[[str], None] = warn) -> None:
        self._ledger = Ledger(file, _SCHEMA, _VERSION, say)

    def shards(self) -> dict[str, tuple[int, int]]:
        """(bytes, mtime in ns) of each shard when it was entered, by file name."""
        return {shard: (size, mtime) for shard, size, mtime in self._ledger.rows("SELECT * FROM shards")}

    def enter(self, shard: str, stamp: tuple[int, int], locations: Iterable[Location]) -> None:
        """Take in what one shard says, in place of what was known of it."""
        rows = [(each.item_key, each.shard, each.row, each.num_frames, each.checksum) for each in locations]
        self._ledger.change(
            [
                ("DELETE FROM items WHERE shard = ?", [(shard,)]),
                ("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?)", [(*row, row_check(*row)) for row in rows]),
                ("INSERT OR REPLACE INTO shards VALUES (?, ?, ?)", [(shard, *stamp)]),
            ]
        )

    def forget(self, shards: Sequence[str]) -> None:
        """Drop what is known of shards that are gone."""
        names = [(shard,) for shard in shards]
        self._ledger.change([(f"DELETE FROM {table} WHERE shard = ?", names) for table in ("items", "shards")])

    def find(self, keys: Iterable[str]) -> dict[str, Location] | None:
        """Locations of the keys that are known; of an item held twice, the first shard by name.

        None when a row was found damaged: the registry is then empty again and must be filled anew.
        """
        wanted, found = list(dict.fromkeys(keys)), {}
        for start in range(0, len(wanted), _KEYS_PER_QUERY):
            part = wanted[start : start + _KEYS_PER_QUERY]
            marks = ", ".join("?" * len(part))
            query = f"SELECT * FROM items WHERE item_key IN ({marks}) ORDER BY item_key, shard DESC"
            for *row, check in self._ledger.rows(query, part):
                if check != row_check(*row):
                    self._ledger.discard("holds a damaged row")
                    return None
                found[row[0]] = Location(**dict(zip(Location.__dataclass_fields__, row, strict=True)))
        return found
