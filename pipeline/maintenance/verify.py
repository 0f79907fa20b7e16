"""Reads every byte of a store and compares it with its checksum.

Nothing is taken from the digest cache or the registries, and nothing is changed: repair.py does that.
Light: readers of shards and manifests are imported when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cache.errors import CacheError, ReceiptDamaged
from cache.fingerprint import digest_file
from cache.receipt import Receipt
from cache.shard_salvage import ShardDamage, shard_damage
from cache.shards import formats
from cache.store import Store
from pipeline.maintenance.damage import (
    ARTIFACT_MEANING,
    SHARD_POOLS,
    Damage,
    VerifyResult,
    path_in_store,
    shard_names,
)
from pipeline.maintenance.verify_places import place_damages
from pipeline.maintenance.verify_references import lost_share, reference_damages
from stages.prepared_audio import damage_of, has_earlier_facts

Progress = Callable[..., None]
DOWNLOAD_SUFFIXES = (".zip", ".safetensors", ".ckpt")
"""Suffixes of the files that a request may download."""


def verify(store: Store, progress: Progress = lambda done, total, note="": None) -> VerifyResult:
    """Check every artifact, shard, prepared clip and download of a store."""
    damages: list[Damage] = list(place_damages(store))
    wrong_kind = {damage.path for damage in damages}
    receipts = store.receipts(on_damage=lambda error: damages.append(_receipt_damage(store, error)))
    damages += receiptless_damages(store)
    shards = [
        (pool, format, name)
        for pool in SHARD_POOLS
        for format in formats()
        for name in shard_names(store, pool, format)
        if f"shared/{pool}/{name}" not in wrong_kind
    ]
    prepared = _prepared_clips(store)
    checks: list[Callable[[], Iterator[Damage]]] = [
        *(partial(artifact_damages, store, receipt) for receipt in receipts),
        *(partial(shard_damages, store, *shard) for shard in shards),
        *(partial(prepared_damages, store, file) for file in prepared),
    ]
    for done, check in enumerate(checks, 1):
        damages += check()
        progress(done, len(checks))
    damages += [*reference_damages(store, receipts, damages), *source_damages(store)]
    return VerifyResult(
        damages=tuple(with_clips(store, receipts, damages)),
        num_artifacts=len(receipts),
        num_shards=len(shards),
        num_prepared=len(prepared),
    )


def _prepared_clips(store: Store) -> list[Path]:
    """The FLAC of every prepared clip, whether it or only the facts beside it exist."""
    # `Path.glob` passes over folders that it may not read.
    folders = [folder for folder in _entries(store.shared / "prepared") if folder.is_dir()]
    files = [path for folder in folders for path in _entries(folder)]
    return sorted({path.with_suffix(".flac") for path in files if path.suffix in (".flac", ".json")})


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing without one."""
    return list(folder.iterdir()) if folder.is_dir() else []


def _receipt_damage(store: Store, error: ReceiptDamaged) -> Damage:
    path = path_in_store(store, error.file.parent)
    meaning = ARTIFACT_MEANING.get(error.file.parent.parent.name, "the same run makes it again")
    return Damage(kind="receipt", path=path, what=str(error).partition(". ")[0], meaning=meaning)


def receiptless_damages(store: Store) -> Iterator[Damage]:
    """Folders of artifacts whose receipt is gone; an empty folder is none."""
    for directory in store.folders_without_receipt():
        meaning = ARTIFACT_MEANING.get(directory.parent.name, "the same run makes it again")
        yield Damage(kind="receipt", path=path_in_store(store, directory), what="its receipt is gone", meaning=meaning)


def artifact_damages(store: Store, receipt: Receipt) -> Iterator[Damage]:
    """An artifact whose files do not match its receipt."""
    if faults := store.differences(receipt):
        yield Damage(
            kind="artifact",
            path=path_in_store(store, store.directory(receipt.stage, receipt.fingerprint)),
            what="; ".join(faults),
            meaning=ARTIFACT_MEANING[receipt.stage],
            detail=receipt,
        )


def shard_damages(store: Store, pool: str, format: str, name: str) -> Iterator[Damage]:
    """A shard with items that do not match their checksums."""
    from cache.shard_pool import ShardPool

    fault = shard_damage(ShardPool(store.shared / pool, format), name)
    if fault is not None:
        share = lost_share(None if fault.lost_keys is None else len(fault.lost_keys), None)
        meaning = f"{share} lost: {SHARD_POOLS[pool]}"
        yield Damage(kind="shard", path=f"shared/{pool}/{name}", what=fault.problem, meaning=meaning, detail=fault)


def prepared_damages(store: Store, audio: Path) -> Iterator[Damage]:
    """A prepared clip that does not match the facts beside it; facts of an earlier version are not used any more."""
    why = "" if has_earlier_facts(audio) else damage_of(audio)
    if why and (audio.exists() or audio.with_suffix(".json").exists()):  # else it was removed since it was listed
        meaning = "the clip is decoded again when it is read"
        yield Damage(kind="prepared", path=path_in_store(store, audio), what=f"it {why}", meaning=meaning)


def source_damages(store: Store) -> Iterator[Damage]:
    """Zips from `data:` addresses and downloaded zips and adapter files that do not match the digest in their name."""
    files = [file for file in _entries(store.shared / "sources") if file.suffix in DOWNLOAD_SUFFIXES and file.is_file()]
    for file in sorted(files):
        if len(file.stem) == 32 and not digest_file(file).startswith(f"sha256:{file.stem}"):
            meaning = "it is downloaded or decoded again from its address"
            yield Damage(kind="source", path=path_in_store(store, file), what="it has other bytes", meaning=meaning)


def with_clips(store: Store, receipts: Sequence[Receipt], damages: Sequence[Damage]) -> list[Damage]:
    """The damages, with the clips that those of latents affect."""
    of_latents = [damage for damage in damages if damage.kind in ("shard", "gone") and "/latents/" in damage.path]
    if not of_latents:
        return list(damages)
    clips: dict[str, set[str]] = {damage.path: set() for damage in of_latents}
    lost_keys = {damage.path: _lost_keys(damage) for damage in of_latents}
    for receipt in receipts:
        for clip_id, key, shard in _encoded_clips(store, receipt):
            path = f"shared/latents/{shard}"
            if path in clips and _is_lost(key, lost_keys[path]):
                clips[path].add(clip_id)
    return [replace(damage, clips=tuple(sorted(clips.get(damage.path, ())))) for damage in damages]


def _lost_keys(damage: Damage) -> set[str] | None:
    """Keys of the items that a damaged shard lost; None: all of them."""
    fault = damage.detail
    return set(fault.lost_keys) if isinstance(fault, ShardDamage) and fault.lost_keys is not None else None


def _is_lost(key: str, lost_keys: set[str] | None) -> bool:
    return lost_keys is None or key in lost_keys


def _encoded_clips(store: Store, receipt: Receipt) -> Iterator[tuple[str, str, str]]:
    """(clip, item key, shard) of each row of an encode artifact; stops where the manifest cannot be read."""
    if receipt.stage != "encode":
        return
    from cache.manifest import iter_rows
    from stages.records import EncodedClip

    try:
        for row in iter_rows(store.directory("encode", receipt.fingerprint) / "manifest.parquet", EncodedClip):
            yield row.clip_id, row.item_key, row.shard
    except (CacheError, OSError):
        return
