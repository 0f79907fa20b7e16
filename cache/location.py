"""Where an item is stored: shard, row, length and checksum. Light: standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where one item is stored, and its expected length and checksum."""

    item_key: str
    shard: str
    """File name in the folder of its shard pool."""
    row: int
    num_frames: int
    checksum: str
    """crc32 of the item's bytes, eight hex digits."""

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Location:
        """The location in a JSON object, such as a receipt's `silence`; other entries are ignored."""
        return Location(**{name: record[name] for name in Location.__dataclass_fields__})
