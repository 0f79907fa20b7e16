"""Every checksum in the store, read anew: what is damaged, what that means, which clips it concerns.

Remembered digests and the registries are not asked: they are caches. Nothing is changed here; repair.py does that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from cache.errors import CacheError, ReceiptDamaged
from cache.fingerprint import digest_file
from cache.receipt import Receipt
from cache.shard_salvage import ShardFault, shard_fault
from cache.shards import formats, load
from cache.shared_files import missing_shared_files
from cache.store import Store
from pipeline.plan.missing_files import ON_DEMAND_STAGE
from stages.plural import is_or_are, pluralized

SHARD_POOLS = {"latents": "lost latents are encoded again", "prompts": "lost prompts are embedded again"}
"""Pools of shards, and what happens when an item of one is lost."""
Progress = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One damaged thing."""

    kind: str
    """`receipt`, `artifact`, `rows`, `gone`, `shard`, `prepared`, `source` or `weights`."""
    path: str
    """Inside the store."""
    what: str
    meaning: str
    """What it means for the next run."""
    clips: tuple[str, ...] = ()
    """Clips concerned, where that can be told."""
    detail: Any = None
    """What repair needs: the receipt, or the fault of the shard."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        names = ("kind", "path", "what", "meaning")
        return {**{name: getattr(self, name) for name in names}, "clips": list(self.clips)}


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was looked at and what was found."""

    damages: tuple[Damage, ...]
    num_artifacts: int
    num_shards: int
    num_prepared: int

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        counts = {name: getattr(self, name) for name in ("num_artifacts", "num_shards", "num_prepared")}
        return {"damages": [damage.as_json() for damage in self.damages], "checked": counts}


def verify(store: Store, progress: Progress = lambda done, total, note="": None) -> Checked:
    """Read every byte of the store and compare it with its checksum."""
    unreadable: list[Damage] = []
    receipts = store.receipts(on_damage=lambda error: unreadable.append(_receipt_damage(store, error)))
    shards = [
        (pool, format, name) for pool in SHARD_POOLS for format in formats() for name in _shards(store, pool, format)
    ]
    prepared = sorted((store.shared / "prepared").glob("*/*.json"))
    looks: list[Callable[[], Iterator[Damage]]] = [
        *(partial(artifact_damages, store, receipt) for receipt in receipts),
        *(partial(shard_damages, store, place) for place in shards),
        *(partial(prepared_damages, store, file) for file in prepared),
    ]
    found = list(unreadable)
    for done, look in enumerate(looks, 1):
        found += look()
        progress(done, len(looks))
    found += [*row_damages(store, receipts, found), *source_damages(store), *weights_damages(store)]
    counts = {"num_artifacts": len(receipts), "num_shards": len(shards), "num_prepared": len(prepared)}
    return Checked(damages=tuple(with_clips(store, receipts, found)), **counts)


def artifact_damages(store: Store, receipt: Receipt) -> Iterator[Damage]:
    """Files of an artifact that are not those its receipt lists."""
    if faults := store.faults(receipt):
        yield Damage(
            kind="artifact",
            path=_inside(store, store.directory(receipt.stage, receipt.fingerprint)),
            what="; ".join(faults),
            meaning=_MEANING[receipt.stage],
            detail=receipt,
        )


_MEANING = {
    "ingest": "the dataset is listed again; clips that are prepared stay prepared",
    "encode": "its manifest is written again; no clip whose latents are whole is encoded again",
    "train": "the adapter is written again from the last checkpoint; without one the training begins anew",
}


def shard_damages(store: Store, place: tuple[str, str, str]) -> Iterator[Damage]:
    """Items of one shard whose bytes are not what they were."""
    from cache.shard_pool import ShardPool

    pool, format, name = place
    fault = shard_fault(ShardPool(store.shared / pool, format), name)
    if fault is not None:
        lost_items = "all its items are" if fault.lost_keys is None else _share(len(fault.lost_keys), None)
        meaning = f"{lost_items} lost: {SHARD_POOLS[pool]}"
        yield Damage(kind="shard", path=f"shared/{pool}/{name}", what=fault.problem, meaning=meaning, detail=fault)


def prepared_damages(store: Store, facts_file: Path) -> Iterator[Damage]:
    """A prepared clip whose bytes are not those its facts name."""
    audio = facts_file.with_suffix(".flac")
    why = ""
    try:
        wanted = json.loads(facts_file.read_bytes())["checksum"]
        why = "" if digest_file(audio) == wanted else "it has other bytes than when it was prepared"
    except FileNotFoundError:
        why = "" if not facts_file.exists() else "its audio is gone"
    except (ValueError, KeyError, TypeError) as error:
        why = f"its facts cannot be read ({error})"
    if why:
        meaning = "the clip is decoded again when it is read"
        yield Damage(kind="prepared", path=_inside(store, audio), what=why, meaning=meaning)


def row_damages(store: Store, receipts: Sequence[Receipt], known: Sequence[Damage]) -> Iterator[Damage]:
    """Encodings whose shards are gone, or hold something else than the manifest says."""
    bad = {damage.path for damage in known}
    unread = {path.removeprefix("shared/") for path in bad}
    whole = []
    for receipt in receipts:
        directory = store.directory(receipt.stage, receipt.fingerprint)
        if receipt.stage not in (ON_DEMAND_STAGE, "train") and _inside(store, directory) not in bad:
            whole.append((receipt, set(missing_shared_files(directory, store.shared))))
    yield from gone_damages(store, whole, unread)
    for receipt, gone in whole:
        directory = store.directory(receipt.stage, receipt.fingerprint)
        if wrong := _wrong_rows(store, receipt, directory, gone | unread):
            yield Damage(
                kind="rows",
                path=_inside(store, directory),
                what=f"{pluralized(len(wrong), 'row')} that cannot be in the shard named ({wrong[0]})",
                meaning=_MEANING["encode"],
                detail=receipt,
            )


def gone_damages(store: Store, whole: Sequence[tuple[Receipt, set[str]]], unread: set[str]) -> Iterator[Damage]:
    """Shards that encodings name and that are not there. What a repair saved of one lies in another.

    Args:
        whole: encodings, with the shards each of them misses.
        unread: shards that are there, and damaged.
    """
    named: dict[tuple[str, str], set[str]] = {}
    for receipt, gone in whole:
        for path, key in _named_items(store, receipt) if gone else ():
            if path in gone:
                named.setdefault((path, receipt.facts["latent_format"]), set()).add(key)
    sound = cache(partial(_sound_keys, store, frozenset(unread)))
    for (path, format), keys in sorted(named.items()):
        pool, _, shard = path.partition("/")
        lost_keys = tuple(sorted(keys - sound(pool, format)))
        what = "it is gone, or of another size"
        saved = f"what it held lies in other shards: {_MEANING['encode']}"
        meaning = f"{_share(len(lost_keys), len(keys))} lost: {SHARD_POOLS[pool]}" if lost_keys else saved
        fault = ShardFault(shard=shard, problem=what, lost_keys=lost_keys)
        yield Damage(kind="gone", path=f"shared/{path}", what=what, meaning=meaning, detail=fault)


def _share(num_lost: int, num_items: int | None) -> str:
    return "all its items are" if num_lost == num_items else f"{num_lost:,} of its items {is_or_are(num_lost)}"


def _named_items(store: Store, receipt: Receipt) -> Iterator[tuple[str, str]]:
    """(shard as a path inside the shared folder, item key) of all that an encoding names."""
    from stages.references import item_locations

    silence = receipt.facts["silence"]
    yield f"latents/{silence['shard']}", silence["item_key"]
    for pool, place in item_locations(store.directory(receipt.stage, receipt.fingerprint)):
        yield f"{pool}/{place.shard}", place.item_key


def _sound_keys(store: Store, unread: Collection[str], pool: str, format: str) -> set[str]:
    """Items of the shards that are there, but for those found damaged."""
    names = [name for name in _shards(store, pool, format) if f"{pool}/{name}" not in unread]
    return {key for name in names for key in load(format).Reader(store.shared / pool / name).keys}


def _wrong_rows(store: Store, receipt: Receipt, directory: Path, skip: set[str]) -> list[str]:
    from cache.shard_pool import ShardPool
    from stages.references import item_locations

    format, wrong = receipt.facts["latent_format"], []
    shard_pools = {pool: ShardPool(store.shared / pool, format) for pool in SHARD_POOLS}
    for pool, place in item_locations(directory):
        if f"{pool}/{place.shard}" in skip:
            continue
        try:
            shard_pools[pool].read(place, 0, 0)  # no bytes: only whether the shard holds it there
        except CacheError as error:
            wrong.append(str(error))
    return wrong


def source_damages(store: Store) -> Iterator[Damage]:
    """Zips that were written from a `data:` address: named by their digest."""
    for file in sorted((store.shared / "sources").glob("*.zip")):
        if len(file.stem) == 32 and not digest_file(file).startswith(f"sha256:{file.stem}"):
            meaning = "it is written again from the address"
            yield Damage(kind="source", path=_inside(store, file), what="it has other bytes", meaning=meaning)


def weights_damages(store: Store) -> Iterator[Damage]:
    """The weights that ship with the project, compared with ones made anew."""
    for folder in sorted((store.shared / "weights").glob("*")):
        from pipeline.maintenance.bundled_weights import ASIDE, shipped_faults  # deferred: looks at model families

        if folder.is_dir() and not folder.name.startswith(ASIDE) and (why := shipped_faults(folder)):
            meaning = "they are made again on first use"
            yield Damage(kind="weights", path=_inside(store, folder), what=why, meaning=meaning)


def with_clips(store: Store, receipts: Sequence[Receipt], damages: Sequence[Damage]) -> list[Damage]:
    """Name the clips that damaged shards concern."""
    concerned = [damage for damage in damages if damage.kind in ("shard", "gone") and "/latents/" in damage.path]
    if not concerned:
        return list(damages)
    clips: dict[str, set[str]] = {damage.path: set() for damage in concerned}
    lost_keys = {damage.path: _lost_keys(damage) for damage in concerned}
    for receipt in receipts:
        for clip_id, key, shard in _encoded(store, receipt):
            path = f"shared/latents/{shard}"
            if path in clips and (lost_keys[path] is None or key in lost_keys[path]):
                clips[path].add(clip_id)
    return [replace(damage, clips=tuple(sorted(clips.get(damage.path, ())))) for damage in damages]


def _lost_keys(damage: Damage) -> Any:
    fault = damage.detail
    return set(fault.lost_keys) if isinstance(fault, ShardFault) and fault.lost_keys is not None else None


def _encoded(store: Store, receipt: Receipt) -> Iterator[tuple[str, str, str]]:
    """(clip, item key, shard) of each row of an encoding; nothing of one that cannot be read."""
    if receipt.stage != "encode":
        return
    from cache.manifest import iter_rows
    from stages.records import EncodedClip

    try:
        for row in iter_rows(store.directory("encode", receipt.fingerprint) / "manifest.parquet", EncodedClip):
            yield row.clip_id, row.item_key, row.shard
    except (CacheError, OSError):
        return


def _receipt_damage(store: Store, error: ReceiptDamaged) -> Damage:
    path = _inside(store, error.file.parent)
    meaning = _MEANING.get(error.file.parent.parent.name, "the run that made it makes it again")
    return Damage(kind="receipt", path=path, what=str(error).partition(". ")[0], meaning=meaning)


def _shards(store: Store, pool: str, format: str) -> list[str]:
    from cache.shard_pool import ShardPool

    return list(ShardPool(store.shared / pool, format).shards())


def _inside(store: Store, path: Path) -> str:
    return path.relative_to(store.root).as_posix()
