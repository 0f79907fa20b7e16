"""Checks that the items referenced by encode artifacts are in the shards where their manifests say.

Light: readers of shards and manifests are imported when they are used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cache, partial

from cache.errors import CacheError
from cache.receipt import Receipt
from cache.shard_salvage import ShardDamage
from cache.shards import load
from cache.shared_files import missing_shared_files
from cache.store import Store
from pipeline.maintenance.damage import ARTIFACT_MEANING, SHARD_POOLS, Damage, path_in_store, shard_names
from stages.plural import is_or_are, pluralized


def reference_damages(store: Store, receipts: Sequence[Receipt], known: Sequence[Damage]) -> Iterator[Damage]:
    """Encode artifacts whose shards are missing, or hold other items than the manifest says.

    Args:
        known: damages found so far; the artifacts and shards concerned are not read again.
    """
    damaged = {damage.path for damage in known}
    damaged_shards = {path.removeprefix("shared/") for path in damaged}
    encodings = []
    for receipt in receipts:
        directory = store.directory(receipt.stage, receipt.fingerprint)
        if receipt.stage == "encode" and path_in_store(store, directory) not in damaged:
            encodings.append((receipt, set(missing_shared_files(directory, store.shared))))
    yield from missing_shards(store, encodings, damaged_shards)
    for receipt, missing in encodings:
        if wrong := _misplaced_items(store, receipt, missing | damaged_shards):
            yield Damage(
                kind="rows",
                path=path_in_store(store, store.directory(receipt.stage, receipt.fingerprint)),
                what=f"{pluralized(len(wrong), 'row')} whose item is not in the shard that is named ({wrong[0]})",
                meaning=ARTIFACT_MEANING["encode"],
                detail=receipt,
            )


def missing_shards(
    store: Store, encodings: Sequence[tuple[Receipt, set[str]]], damaged_shards: set[str]
) -> Iterator[Damage]:
    """Shards that encodings reference and that do not exist. A repair may have saved their items to other shards.

    Args:
        encodings: with the missing shards of each.
        damaged_shards: shards that exist and are damaged.
    """
    referenced: dict[tuple[str, str], set[str]] = {}
    for receipt, missing in encodings:
        for path, key in _referenced_items(store, receipt) if missing else ():
            if path in missing:
                referenced.setdefault((path, receipt.facts["latent_format"]), set()).add(key)
    intact_keys = cache(partial(_intact_keys, store, frozenset(damaged_shards)))
    for (path, format), keys in sorted(referenced.items()):
        pool, _, shard = path.partition("/")
        lost_keys = tuple(sorted(keys - intact_keys(pool, format)))
        what = "it is gone, or of another size"
        saved = f"its items are in other shards: {ARTIFACT_MEANING['encode']}"
        meaning = f"{lost_share(len(lost_keys), len(keys))} lost: {SHARD_POOLS[pool]}" if lost_keys else saved
        fault = ShardDamage(shard=shard, problem=what, lost_keys=lost_keys)
        yield Damage(kind="gone", path=f"shared/{path}", what=what, meaning=meaning, detail=fault)


def lost_share(num_lost: int | None, num_items: int | None) -> str:
    """The subject of a sentence about lost items, such as `3 of its items are`; None for `num_lost`: all of them."""
    return "all its items are" if num_lost in (None, num_items) else f"{num_lost:,} of its items {is_or_are(num_lost)}"


def _referenced_items(store: Store, receipt: Receipt) -> Iterator[tuple[str, str]]:
    """(path of the shard inside the shared folder, item key) of every item that an encode artifact references."""
    from stages.references import item_locations

    silence = receipt.facts["silence"]
    yield f"latents/{silence['shard']}", silence["item_key"]
    for pool, location in item_locations(store.directory(receipt.stage, receipt.fingerprint)):
        yield f"{pool}/{location.shard}", location.item_key


def _intact_keys(store: Store, damaged_shards: Collection[str], pool: str, format: str) -> set[str]:
    """Keys of the items in all existing shards that are not damaged."""
    names = [name for name in shard_names(store, pool, format) if f"{pool}/{name}" not in damaged_shards]
    return {key for name in names for key in load(format).Reader(store.shared / pool / name).keys}


def _misplaced_items(store: Store, receipt: Receipt, skip: set[str]) -> list[str]:
    """Messages about the rows of an encode artifact whose item is not at its location."""
    from cache.shard_pool import ShardPool
    from stages.references import item_locations

    format, wrong = receipt.facts["latent_format"], []
    pools = {pool: ShardPool(store.shared / pool, format) for pool in SHARD_POOLS}
    for pool, location in item_locations(store.directory(receipt.stage, receipt.fingerprint)):
        if f"{pool}/{location.shard}" in skip:
            continue
        try:
            pools[pool].read(location, 0, 0)  # reads no frames, only whether the shard holds the item there
        except CacheError as error:
            wrong.append(str(error))
    return wrong
