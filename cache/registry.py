"""The index of a shard pool: which shard holds which item. Light: standard library only.

It can be rebuilt from the shards at any time. Each row has a checksum, because a location found here goes into
manifests without the shard being opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cache.files.disposable_sqlite import DisposableDatabase, row_checksum, warn
from cache.location import Location

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS shards (shard TEXT PRIMARY KEY, num_bytes INTEGER, mtime_ns INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
    item_key TEXT, shard TEXT, row INTEGER, num_frames INTEGER, checksum TEXT, row_check INTEGER,
    PRIMARY KEY (item_key, shard)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_of_shard ON items (shard)
"""
_PREFIX = "registry-"
_KEYS_PER_QUERY = 500


class Registry:
    """Item key -> location, for the shards of one format in one folder; an sqlite file that processes may share."""

    def __init__(self, folder: Path, format: str, say: Callable[[str], None] = warn) -> None:
        self._database = DisposableDatabase(folder / f"{_PREFIX}{format}.sqlite", _SCHEMA, _VERSION, say)

    def shards(self) -> dict[str, tuple[int, int]]:
        """(bytes, mtime in ns) of each shard when it was added, by file name."""
        return {shard: (size, mtime) for shard, size, mtime in self._database.query("SELECT * FROM shards")}

    def add(self, shard: str, stamp: tuple[int, int], locations: Iterable[Location]) -> None:
        """Stores the items of one shard, in place of those stored for it before."""
        rows = [(one.item_key, one.shard, one.row, one.num_frames, one.checksum) for one in locations]
        self._database.execute(
            [
                ("DELETE FROM items WHERE shard = ?", [(shard,)]),
                (
                    "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?)",
                    [(*row, row_checksum(*row)) for row in rows],
                ),
                ("INSERT OR REPLACE INTO shards VALUES (?, ?, ?)", [(shard, *stamp)]),
            ]
        )

    def remove(self, shards: Sequence[str]) -> None:
        """Removes shards and their items."""
        names = [(shard,) for shard in shards]
        self._database.execute([(f"DELETE FROM {table} WHERE shard = ?", names) for table in ("items", "shards")])

    def find(self, keys: Iterable[str]) -> dict[str, Location] | None:
        """Locations of the keys that are known; for an item held twice, the first shard by name.

        None when a row was damaged: the registry is then empty and must be filled again.
        """
        wanted, found = list(dict.fromkeys(keys)), {}
        for start in range(0, len(wanted), _KEYS_PER_QUERY):
            part = wanted[start : start + _KEYS_PER_QUERY]
            marks = ", ".join("?" * len(part))
            query = f"SELECT * FROM items WHERE item_key IN ({marks}) ORDER BY item_key, shard DESC"
            for *row, checksum in self._database.query(query, part):
                if checksum != row_checksum(*row):
                    self._database.discard("holds a damaged row")
                    return None
                found[row[0]] = Location(**dict(zip(Location.__dataclass_fields__, row, strict=True)))
        return found


def unregister_shards(folder: Path, shards: Sequence[str]) -> None:
    """Removes shards from the registries of all formats in a folder."""
    for file in folder.glob(f"{_PREFIX}*.sqlite"):
        Registry(folder, file.stem.removeprefix(_PREFIX)).remove(shards)
