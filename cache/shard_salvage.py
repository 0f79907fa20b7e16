"""Checking a shard, and moving the intact items of a damaged one to a new shard. Light: standard library only.

A shard is immutable and named by its keys, so it is never repaired in place: its intact items are written to a new
shard, the damaged file is removed, and only the lost items are encoded again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache.errors import ShardDamaged

if TYPE_CHECKING:
    from cache.shard_format import ShardReader
    from cache.shard_pool import ShardPool


@dataclass(frozen=True, kw_only=True)
class ShardDamage:
    """Damage of one shard."""

    shard: str
    """File name in the pool's folder."""
    problem: str
    lost_keys: tuple[str, ...] | None
    """Keys of the damaged items; None when the file's index is damaged, so that all items are lost."""


def shard_damage(pool: ShardPool, shard: str) -> ShardDamage | None:
    """Checks every item of a shard; None when all are intact, or when the shard was removed meanwhile."""
    try:
        pool.verify_shard(shard)
    except FileNotFoundError:
        return None
    except ShardDamaged as error:
        return ShardDamage(shard=shard, problem=error.problem, lost_keys=_lost_keys(pool, shard))
    return None


def salvage(pool: ShardPool, damage: ShardDamage) -> int:
    """Writes the intact items of a damaged shard to a new one, then removes it; returns the number of items saved.

    Raises:
        WriteFailed: the disk is full; the damaged shard is still there.
    """
    items, metadata = [], {}
    if damage.lost_keys is not None:
        reader = pool.new_reader(damage.shard)
        lost = set(damage.lost_keys)
        intact = [row for row, key in enumerate(reader.keys) if key not in lost]
        items, metadata = [(reader.keys[row], reader.read(row)) for row in intact], dict(reader.metadata)
    written = pool.write(items, metadata) if items else []
    if damage.shard not in {location.shard for location in written}:  # else all items are intact and have the same name
        (pool.folder / damage.shard).unlink(missing_ok=True)
    pool.locate(())  # updates the registry
    return len(items)


def _lost_keys(pool: ShardPool, shard: str) -> tuple[str, ...] | None:
    """Keys of the damaged items; None when the shard's index is damaged."""
    reader = pool.new_reader(shard)
    try:
        keys = reader.keys
        lost = tuple(key for row, key in enumerate(keys) if not _is_intact(reader, row))
    except (ShardDamaged, FileNotFoundError):
        return None
    return lost


def _is_intact(reader: ShardReader, row: int) -> bool:
    try:
        reader.verify(row)
    except ShardDamaged:
        return False
    return True
