"""Deletes what a removal plan lists, and leftovers of processes that were killed. Light: standard library only."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress

from cache import run_metadata
from cache.files.atomic_files import remove_stale_temporaries
from cache.registry import unregister_shards
from cache.store import Store
from pipeline.maintenance.gc_policy import RemovalPlan


def remove(store: Store, plan: RemovalPlan) -> None:
    """Delete everything in the plan.

    Artifacts go first: a kill in between leaves unreferenced shared files, never an artifact without its files.
    """
    for artifact, _ in plan.artifacts:
        store.drop(artifact.receipt.stage, artifact.receipt.fingerprint)
    for name, _, _ in plan.unfinished:
        shutil.rmtree(store.scratch_root / name, ignore_errors=True)
        run_metadata.remove(store, name)
    for one in plan.shared:
        (store.shared / one.path).unlink(missing_ok=True)
    _unregister_shards(store, [one.path for one in plan.shared])


def _unregister_shards(store: Store, paths: Sequence[str]) -> None:
    for pool in ("latents", "prompts"):
        shards = [path.partition("/")[2] for path in paths if path.startswith(f"{pool}/")]
        if shards:
            unregister_shards(store.shared / pool, shards)


def remove_leftovers(store: Store) -> None:
    """Delete temporary files of dead writers, metadata of runs that are gone and empty folders."""
    for folder in [store.shared, *(path for path in store.shared.rglob("*") if path.is_dir())]:
        if folder.is_dir():
            remove_stale_temporaries(folder)
    for file in run_metadata.orphans(store):
        file.unlink(missing_ok=True)
    folders = [path for pool in ("prepared", "weights") for path in (store.shared / pool).rglob("*") if path.is_dir()]
    for folder in [*reversed(folders), store.shared / "weights"]:
        with suppress(OSError):  # not empty, or not there
            folder.rmdir()
