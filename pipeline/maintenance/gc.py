"""The `evict` and `gc` commands: decide under the maintenance lock what to remove, then remove it.

Light: standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache import run_metadata
from cache.errors import LockHeld
from cache.files.atomic_files import STALE_AFTER_SECONDS
from cache.inventory import Inventory, StoredArtifact, inventory
from cache.run_metadata import UnfinishedRun
from cache.store import Store
from pipeline.errors import NothingToEvict, StillNeeded, StoreNotFound
from pipeline.execution.locks import maintenance_lock
from pipeline.maintenance.gc_policy import (
    PREPARED_AUDIO,
    UNFINISHED_DAYS,
    RemovalPlan,
    days_since,
    eviction_plan,
    fit_budget,
    gc_plan,
)
from pipeline.maintenance.quantities import bytes_of, days_of, field_error
from pipeline.maintenance.removal import remove, remove_leftovers
from pipeline.store_option import with_store
from stages import catalogue
from stages.plural import pluralized, size

STAGES = ("ingest", "encode", "train")
_DECODED_AGAIN = (
    "without prepared audio the next ingest of these clips decodes them again, also where only a caption was edited; "
    "latents stay"
)
_NAME = re.compile(r"(?:(?P<stage>[a-z]+)[ /-])?(?P<digits>[0-9a-f]{4,64})")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which artifacts to evict: those that match every criterion given."""

    names: Sequence[str] = ()
    """Fingerprints or their first digits, with or without the stage, as `status` prints them: `train 78f57068b67c`."""
    stage: str | None = None
    older_than: str | None = None
    model: str | None = None


def evict(store: Store, selection: Selection, say: Callable[[str], None], *, dry_run: bool) -> RemovalPlan:
    """Remove artifacts by name, stage, age or model, and the shared files that only they reference.

    Raises:
        RecipeError: no criterion is given, or a value cannot be parsed.
        NothingToEvict: nothing in the store matches; that nothing is old enough is not an error.
        StillNeeded: everything that matches is needed by a run that is kept.
    """
    if not (selection.names or selection.stage or selection.older_than or selection.model):
        raise field_error("name", "missing", "name an artifact, or give --stage, --older-than or --model")
    if selection.stage not in (None, *STAGES):
        raise field_error("stage", "stage", f"must be one of {', '.join(STAGES)}", selection.stage)
    matches = [_matcher(name) for name in selection.names]
    days = None if selection.older_than is None else days_of(selection.older_than)
    with _locked_inventory(store, say, dry_run=dry_run) as contents:
        chosen = {
            artifact.receipt.fingerprint
            for artifact in contents.artifacts
            if _is_selected(artifact, selection, matches, days)
        }
        runs = [run for run in contents.unfinished if any(match(run.stage, _digits(run)) for match in matches)]
        if not chosen and not runs:
            return _nothing_old_enough(store, selection)
        idle = {run.name: run_metadata.num_bytes(store, run.name) for run in runs if _is_idle(store, run)}
        plan = eviction_plan(contents, lambda artifact: artifact.receipt.fingerprint in chosen, list(idle.items()))
        plan.kept += [
            f"unfinished {run.name} is kept: a process is working on it" for run in runs if run.name not in idle
        ]
        plan.kept = [with_store(line, store.root) for line in plan.kept]
        if plan.kept and not plan.artifacts and not plan.unfinished:
            raise StillNeeded(plan.kept)
        if not dry_run:
            remove(store, plan)
    return plan


def _nothing_old_enough(store: Store, selection: Selection) -> RemovalPlan:
    """An empty plan where nothing has the age given, as for a scheduled job. Raises: NothingToEvict."""
    if selection.older_than is None or selection.names:
        raise NothingToEvict(store.root)
    stage = f" of stage {selection.stage}" if selection.stage else ""
    model = f" for {selection.model}" if selection.model else ""
    return RemovalPlan(notes=[f"nothing{stage}{model} was finished longer ago than {selection.older_than}"])


def gc(
    store: Store,
    say: Callable[[str], None],
    *,
    dry_run: bool,
    older_than: str | None = None,
    max_bytes: str | None = None,
    prepared: bool = False,
) -> tuple[RemovalPlan, bool]:
    """Remove what no kept run needs; the second value is whether the store then fits into `max_bytes`.

    Raises:
        RecipeError: a value cannot be parsed.
    """
    days = UNFINISHED_DAYS if older_than is None else days_of(older_than)
    limit = None if max_bytes is None else bytes_of(max_bytes)
    with _locked_inventory(store, say, dry_run=dry_run) as contents:
        plan = gc_plan(contents, _idle_runs(store, contents), days, prepared=prepared)
        fits = limit is None or fit_budget(contents, plan, store.sizes().total, limit)
        kept_runs = {run.name for run in contents.unfinished} - plan.removed_keys()
        plan.needed_bytes += sum(run_metadata.num_bytes(store, name) for name in kept_runs)
        plan.kept = [with_store(line, store.root) for line in plan.kept]
        if any(one.why == PREPARED_AUDIO for one in plan.shared):
            plan.notes.append(_DECODED_AGAIN)
        if not dry_run:
            remove(store, plan)
            remove_leftovers(store)
    return plan, fits


def removal_json(plan: RemovalPlan, *, dry_run: bool) -> dict[str, Any]:
    """A removal plan for programs."""
    removed = [{"path": one.path, "num_bytes": one.num_bytes, "why": one.why} for one in plan.removals()]
    counts = {"dry_run": dry_run, "removed": removed, "num_bytes": plan.num_bytes}
    return {**counts, "kept": list(plan.kept), "notes": list(plan.notes)}


def removal_lines(plan: RemovalPlan, *, dry_run: bool) -> list[str]:
    """A removal plan for people: every path with its bytes, then the sum."""
    removals = plan.removals()
    lines = [f"{size(one.num_bytes):>10}  {one.path}  ({one.why})" for one in removals]
    freed = "would be freed" if dry_run else "freed"
    total = f"{pluralized(len(removals), 'file or folder', 'files and folders')}, {size(plan.num_bytes)} {freed}"
    return [*lines, *plan.kept, *plan.notes, total]


@contextmanager
def _locked_inventory(store: Store, say: Callable[[str], None], *, dry_run: bool) -> Iterator[Inventory]:
    """What the store holds; except in a dry run, no other process removes anything or begins a run meanwhile."""
    if dry_run or not store.root.is_dir():
        yield inventory(store)
        return
    with maintenance_lock(store, say):
        yield inventory(store)


def _matcher(name: str) -> Callable[[str, str], bool]:
    """Whether a stage and a fingerprint match a name as it was typed. Raises: RecipeError."""
    match = _NAME.fullmatch(name.strip())
    if match is None:
        rule = "must be an artifact's name as `status` prints it (at least its first four digits)"
        raise field_error("name", "name", rule, name)
    return lambda stage, digits: match["stage"] in (None, stage) and digits.startswith(match["digits"])


def _digits(run: UnfinishedRun) -> str:
    return run.name.partition("-")[2]


def _is_selected(
    artifact: StoredArtifact, selection: Selection, matches: Sequence[Callable[[str, str], bool]], days: float | None
) -> bool:
    receipt = artifact.receipt
    return (
        (not matches or any(match(receipt.stage, receipt.fingerprint) for match in matches))
        and selection.stage in (None, receipt.stage)
        and selection.model in (None, receipt.params.get("model"), catalogue.earlier_weights(receipt.components))
        and (days is None or days_since(receipt.finished) >= days)
    )


def _idle_runs(store: Store, contents: Inventory) -> list[tuple[str, int, float]]:
    """(name, bytes, days since the last write) of the unfinished runs that no process works on."""
    return [
        (run.name, run_metadata.num_bytes(store, run.name), run_metadata.idle_seconds(store, run.name) / 86400)
        for run in contents.unfinished
        if _is_idle(store, run)
    ]


def _is_idle(store: Store, run: UnfinishedRun) -> bool:
    if not run.identity:  # its metadata is lost, so its lock is unknown and only its age can tell
        return run_metadata.idle_seconds(store, run.name) > STALE_AFTER_SECONDS
    try:
        with store.lock(run.stage, run.identity):
            return True
    except (LockHeld, OSError):  # a read-only store cannot tell: a dry run there counts it as in use
        return False


def existing_store(folder: Path) -> Store:
    """The store in a folder that must exist. Raises: StoreNotFound."""
    if not folder.is_dir():
        raise StoreNotFound(folder)
    return Store(folder)
