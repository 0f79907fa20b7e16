"""Damaged shards: which items are lost, and the sound ones saved into a shard of their own. Light until it looks.

A shard is sealed and named by its keys, so it is not written again in part: what is sound moves to a new shard, the
damaged file goes, and only the lost items are made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cache.errors import ShardDamaged

if TYPE_CHECKING:
    from cache.shard_format import ShardReader
    from cache.shelf import Shelf


@dataclass(frozen=True, kw_only=True)
class ShardFault:
    """What is wrong with one shard."""

    shard: str
    """File name inside the shelf's folder."""
    what: str
    lost_keys: tuple[str, ...] | None
    """Items whose bytes are damaged; None when the file's index cannot be believed, so that all are lost."""


def shard_fault(shelf: Shelf, shard: str) -> ShardFault | None:
    """Check every item of a shard; None when all are sound, or when the shard was removed meanwhile."""
    try:
        shelf.verify_shard(shard)
    except FileNotFoundError:
        return None
    except ShardDamaged as error:
        return ShardFault(shard=shard, what=str(error.what), lost_keys=_lost_keys(shelf, shard))
    return None


def saved(shelf: Shelf, fault: ShardFault) -> int:
    """Remove a damaged shard, once its sound items lie in a new one; return how many were saved.

    Raises:
        WriteFailed: the disk is full; the damaged shard is still there.
    """
    items, metadata = [], {}
    path = shelf.folder / fault.shard
    if fault.lost_keys is not None:
        reader = _reader(shelf, path)
        lost = set(fault.lost_keys)
        sound = [row for row, key in enumerate(reader.keys) if key not in lost]
        items, metadata = [(reader.keys[row], reader.read(row)) for row in sound], dict(reader.metadata)
    written = shelf.write(items, metadata) if items else []
    if fault.shard not in {place.shard for place in written}:  # all sound, the file around them not: made anew in place
        path.unlink(missing_ok=True)
    shelf.locate(())  # the registry forgets it
    return len(items)


def _lost_keys(shelf: Shelf, shard: str) -> tuple[str, ...] | None:
    """Keys of the damaged items, where the shard's index is sound and only some items are not."""
    reader = _reader(shelf, shelf.folder / shard)
    try:
        keys = reader.keys
        lost = tuple(key for row, key in enumerate(keys) if not _is_sound(reader, row))
    except (ShardDamaged, FileNotFoundError):
        return None
    return lost


def _is_sound(reader: ShardReader, row: int) -> bool:
    try:
        reader.verify(row)
    except ShardDamaged:
        return False
    return True


def _reader(shelf: Shelf, path: Path) -> ShardReader:
    from cache.shards import load

    return load(shelf.format).Reader(path)
