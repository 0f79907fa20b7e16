"""Removes what `verify` found damaged and saves what is intact beside it; the same run makes the rest again.

artifact   ingest, encode: removed, and made again from what the store holds
           train: becomes an unfinished run again without the damaged files; the same command resumes it
shard      its intact items move to a new shard; the lost ones are made again
receipt    in the folder of another artifact: put back where its files are
place      a folder in place of a file, or a file in place of a folder: removed
prepared, source   removed, and made again when they are read

Light: readers of shards are imported when they are used.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from cache import run_metadata
from cache.receipt import Receipt
from cache.registry import unregister_shards
from cache.shard_salvage import ShardDamage, salvage
from cache.store import RECEIPT, Store, file_sizes
from pipeline.execution.command_line import REQUEST
from pipeline.execution.locks import maintenance_lock
from pipeline.maintenance.damage import Damage
from pipeline.maintenance.misplaced import has_digest, put_back
from stages.plural import pluralized


def repair(store: Store, damages: Sequence[Damage], say: Callable[[str], None]) -> list[str]:
    """Remove what is damaged; return one line per damage.

    Raises:
        WriteFailed: the disk is too full to save the intact items of a damaged shard, which is left as it is.
    """
    for damage in damages:
        if damage.kind == "place":  # first: it may be in the way of the lock
            _remove(store.root / damage.path)
    with maintenance_lock(store, say):
        done = put_back(store, damages)
        return [f"{one.path}: {done.get(one.path) or _REPAIRS[one.kind](store, one)}" for one in damages]


def _drop_artifact(store: Store, damage: Damage) -> str:
    directory = store.root / damage.path
    if directory.parent.name == "train":
        assert not isinstance(damage.detail, ShardDamage), "artifacts are reported with their receipt, or without one"
        return _make_unfinished(store, directory, damage.detail)
    _remove(directory / RECEIPT)
    shutil.rmtree(directory, ignore_errors=True)
    return "dropped"


def _make_unfinished(store: Store, directory: Path, receipt: Receipt | None) -> str:
    """Turn the intact files of a training into an unfinished run, which resumes from its checkpoint."""
    identity = receipt.identity if receipt else _identity_in(directory / RECEIPT)
    # Without an identity the run finds it by its fingerprint, which is in the folder's name.
    scratch = store.scratch("train", identity) if identity else store.scratch_root / f"train-{directory.name}"
    _remove(directory / RECEIPT)
    if scratch.exists():
        shutil.rmtree(directory, ignore_errors=True)
        return "dropped; its unfinished run can be continued"
    for name in _damaged_files(directory, receipt) if receipt else ():
        _remove(directory / name)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    directory.replace(scratch)
    if receipt:
        run_metadata.write(store, _unfinished_run(receipt, scratch.name))
    return "turned back into an unfinished run; the same command continues from its checkpoint"


def _unfinished_run(receipt: Receipt, name: str) -> run_metadata.UnfinishedRun:
    return run_metadata.UnfinishedRun(
        name=name,
        stage=receipt.stage,
        fingerprint=receipt.fingerprint,
        identity=receipt.identity,
        params=receipt.params,
        inputs=receipt.inputs,
        components=receipt.components,
        began=receipt.started,
        request=receipt.environment.get(REQUEST, {}),
    )


def _damaged_files(directory: Path, receipt: Receipt) -> list[str]:
    """Files of a training that do not match its receipt, or are not listed there; folders in place of files."""
    listed = {entry.name: entry.sha256 for entry in receipt.files}
    folders = [name for name in listed if (directory / name).is_dir()]
    present = [name for name in file_sizes(directory) if not any(name.startswith(f"{one}/") for one in folders)]
    return folders + [name for name in present if not has_digest(directory / name, listed.get(name))]


def _identity_in(file: Path) -> str:
    """The identity in a damaged receipt, or nothing. Safe to use: a checkpoint of another run is not resumed."""
    try:
        identity = str(json.loads(file.read_bytes())["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return identity if re.fullmatch(r"[0-9a-f]{64}", identity) else ""


def _salvage_shard(store: Store, damage: Damage) -> str:
    from cache.shard_pool import ShardPool

    fault, path = damage.detail, store.root / damage.path
    assert isinstance(fault, ShardDamage), "shards are reported with their fault"
    count = salvage(ShardPool(path.parent, _format_of(path)), fault)
    were = "was" if count == 1 else "were"
    return f"removed; {pluralized(count, 'intact item')} {were} saved" if count else "removed"


def _format_of(path: Path) -> str:
    from cache.shards import formats, load

    return next(name for name in formats() if path.suffix == load(name).SUFFIX)


def _unregister_shard(store: Store, damage: Damage) -> str:
    """Remove a missing shard from the registries. An intact one of another size stays: the next encoding uses it."""
    path = store.root / damage.path
    if path.exists():
        return "left as it is: it is intact, but not the shard that the encoding references"
    unregister_shards(path.parent, [path.name])
    return "forgotten"


def _drop_prepared(store: Store, damage: Damage) -> str:
    path = store.root / damage.path
    for part in (path.with_suffix(".json"), path):
        _remove(part)
    return "removed"


def _drop(store: Store, damage: Damage) -> str:
    _remove(store.root / damage.path)
    return "removed"


def _remove(path: Path) -> None:
    """Remove a file, or a folder in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


_REPAIRS: dict[str, Callable[[Store, Damage], str]] = {
    "place": lambda store, damage: "removed",
    "receipt": _drop_artifact,
    "artifact": _drop_artifact,
    "rows": _drop_artifact,
    "shard": _salvage_shard,
    "gone": _unregister_shard,
    "prepared": _drop_prepared,
    "source": _drop,
}
