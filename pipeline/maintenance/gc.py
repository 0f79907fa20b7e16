"""`evict` and `gc` as commands: choose, show, remove. Removal holds the store, so no run begins in between."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache import run_metadata
from cache.atomic_files import STALE_AFTER_SECONDS, remove_stale_temporaries
from cache.errors import LockHeld
from cache.inventory import Inventory, StoredArtifact, inventory
from cache.registry import Registry
from cache.store import Store, folder_bytes
from pipeline.errors import FieldError, NothingToEvict, RecipeError, StillNeeded, StoreNotFound
from pipeline.execution.locks import maintenance_lock
from pipeline.maintenance.gc_policy import (
    PREPARED,
    UNFINISHED_DAYS,
    Decision,
    collected,
    days_since,
    evicted,
    within_budget,
)
from stages.plural import pluralized

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_DAYS = {"h": 1 / 24, "d": 1.0, "w": 7.0}
STAGES = ("ingest", "encode", "train")
_DECODED_AGAIN = (
    "without prepared audio the next ingest of these sounds decodes them again, also where only a caption was edited; "
    "latents stay"
)
_NAME = re.compile(r"(?:(?P<stage>[a-z]+)[ /-])?(?P<digits>[0-9a-f]{4,64})")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What `evict` was asked for: everything that fits all that is given."""

    names: Sequence[str] = ()
    """Fingerprints, or how they begin, as `status` prints them; `train 78f57068b67c` as well."""
    stage: str | None = None
    older_than: str | None = None
    model: str | None = None


def evict(store: Store, choice: Choice, say: Callable[[str], None], *, dry_run: bool) -> Decision:
    """Remove artifacts by name, stage, age or model, and the shared files that only they named.

    Raises:
        RecipeError: nothing is named, or a value has the wrong form.
        NothingToEvict: nothing in the store fits; that nothing is old enough is no error.
        StillNeeded: all that was named is needed by a run that stays.
    """
    if not (choice.names or choice.stage or choice.older_than or choice.model):
        raise _wrong("name", "missing", "name an artifact, or give --stage, --older-than or --model")
    if choice.stage not in (None, *STAGES):
        raise _wrong("stage", "stage", f"must be one of {', '.join(STAGES)}", choice.stage)
    matches = [_matcher(name) for name in choice.names]
    days = None if choice.older_than is None else days_of(choice.older_than)
    with _looked(store, say, dry_run=dry_run) as held:
        artifacts = [artifact for artifact in held.artifacts if _fits(artifact, choice, matches, days)]
        digits = {run.name: (run.stage, run.name.partition("-")[2]) for run in held.unfinished}
        runs = [name for name, known in digits.items() if any(match(*known) for match in matches)]
        if not artifacts and not runs:
            return _nothing_so_old(store, choice)
        chosen = {artifact.receipt.fingerprint for artifact in artifacts}
        idle = [(name, run_metadata.num_bytes(store, name)) for name in runs if _is_idle(store, held, name)]
        decision = evicted(held, lambda artifact: artifact.receipt.fingerprint in chosen, idle)
        decision.kept += [f"unfinished {name} is kept: it is at work now" for name in set(runs) - dict(idle).keys()]
        if decision.kept and not decision.artifacts and not decision.unfinished:
            raise StillNeeded(decision.kept)
        _finish(store, decision, dry_run=dry_run)
    return decision


def _nothing_so_old(store: Store, choice: Choice) -> Decision:
    """What is asked for by age, as a timer asks, is done where nothing has that age. Raises: NothingToEvict."""
    if choice.older_than is None or choice.names:
        raise NothingToEvict(store.root)
    stage = f" of stage {choice.stage}" if choice.stage else ""
    model = f" for {choice.model}" if choice.model else ""
    return Decision(notes=[f"nothing{stage}{model} was finished longer ago than {choice.older_than}"])


def gc(
    store: Store,
    say: Callable[[str], None],
    *,
    dry_run: bool,
    older_than: str | None = None,
    max_bytes: str | None = None,
    prepared: bool = False,
) -> tuple[Decision, bool]:
    """Remove what no kept run needs; the second value is False when `max_bytes` could not be met.

    Raises:
        RecipeError: a value has the wrong form.
    """
    days = UNFINISHED_DAYS if older_than is None else days_of(older_than)
    limit = None if max_bytes is None else bytes_of(max_bytes)
    with _looked(store, say, dry_run=dry_run) as held:
        decision = collected(held, _idle(store, held), days, prepared=prepared)
        total = store.sizes().total
        met = limit is None or within_budget(held, decision, total, limit)
        open_runs = {run.name for run in held.unfinished} - {name for name, _, _ in decision.unfinished}
        decision.needed_bytes += sum(run_metadata.num_bytes(store, name) for name in open_runs)
        if any(one.why == PREPARED for one in decision.shared):
            decision.notes.append(_DECODED_AGAIN)
        _finish(store, decision, dry_run=dry_run)
        if not dry_run:
            tidied(store)
    return decision, met


def decision_json(decision: Decision, *, dry_run: bool) -> dict[str, Any]:
    """For programs."""
    said = {"kept": list(decision.kept), "notes": list(decision.notes)}
    removed = [{"path": one.path, "num_bytes": one.num_bytes, "why": one.why} for one in decision.removals()]
    return {"dry_run": dry_run, "removed": removed, "num_bytes": decision.num_bytes, **said}


def decision_lines(decision: Decision, *, dry_run: bool) -> list[str]:
    """For people: every name with its bytes, then the sum."""
    removals = decision.removals()
    lines = [f"{one.num_bytes:>14,}  {one.path}  ({one.why})" for one in removals]
    word = "would be freed" if dry_run else "freed"
    total = f"{pluralized(len(removals), 'thing')}, {decision.num_bytes:,} bytes {word}"
    return [*lines, *decision.kept, *decision.notes, total]


def days_of(text: str) -> float:
    """`30d`, `12h`, `2w`, or a plain number of days. Raises: RecipeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([hdw]?)", text.strip().lower())
    if not match:
        raise _wrong("older_than", "age", "must be an age such as 30d, 12h or 2w", text)
    return float(match[1]) * _DAYS[match[2] or "d"]


def bytes_of(text: str) -> int:
    """`50G`, `800M`, `1.5T` (powers of 1024), or a plain number of bytes. Raises: RecipeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if not match:
        raise _wrong("max_bytes", "size", "must be a size such as 50G or 800M", text)
    return int(float(match[1]) * _UNITS[match[2]])


@contextmanager
def _looked(store: Store, say: Callable[[str], None], *, dry_run: bool) -> Iterator[Inventory]:
    """What the store holds; unless nothing will be removed, nobody else removes or begins anything meanwhile."""
    if dry_run or not store.root.is_dir():
        yield inventory(store)
        return
    with maintenance_lock(store, say):
        yield inventory(store)


def _matcher(name: str) -> Callable[[str, str], bool]:
    match = _NAME.fullmatch(name.strip())
    if match is None:
        rule = "must be an artifact's name as `status` prints it (at least its first four digits)"
        raise _wrong("name", "name", rule, name)
    return lambda stage, digits: match["stage"] in (None, stage) and digits.startswith(match["digits"])


def _fits(
    artifact: StoredArtifact, choice: Choice, matches: Sequence[Callable[[str, str], bool]], days: float | None
) -> bool:
    receipt = artifact.receipt
    model = receipt.params.get("model")
    return (
        (not matches or any(match(receipt.stage, receipt.fingerprint) for match in matches))
        and choice.stage in (None, receipt.stage)
        and choice.model in (None, model)
        and (days is None or days_since(receipt.finished) >= days)
    )


def _idle(store: Store, held: Inventory) -> list[tuple[str, int, float]]:
    """(name, bytes, days since anything was written) of the unfinished runs that nobody is at work on."""
    return [
        (run.name, run_metadata.num_bytes(store, run.name), run_metadata.idle_seconds(store, run.name) / 86400)
        for run in held.unfinished
        if _is_idle(store, held, run.name)
    ]


def _is_idle(store: Store, held: Inventory, name: str) -> bool:
    run = next(run for run in held.unfinished if run.name == name)
    if not run.identity:  # its note is lost: age alone decides
        return run_metadata.idle_seconds(store, name) > STALE_AFTER_SECONDS
    try:
        with store.lock(run.stage, run.identity):
            return True
    except LockHeld:
        return False


def _finish(store: Store, decision: Decision, *, dry_run: bool) -> None:
    """Artifacts first: a kill in between leaves shared files that nobody names, never an artifact that lacks some."""
    if dry_run:
        return
    for artifact, _ in decision.artifacts:
        store.drop(artifact.receipt.stage, artifact.receipt.fingerprint)
    for name, _, _ in decision.unfinished:
        shutil.rmtree(store.root / "scratch" / name, ignore_errors=True)
        run_metadata.remove(store, name)
    for one in decision.shared:
        (store.shared / one.path).unlink(missing_ok=True)
    _forget_shards(store, [one.path for one in decision.shared])


def _forget_shards(store: Store, paths: Sequence[str]) -> None:
    for pool in ("latents", "prompts"):
        gone = [path.partition("/")[2] for path in paths if path.startswith(f"{pool}/")]
        for file in (store.shared / pool).glob("registry-*.sqlite") if gone else ():
            Registry(file).remove(gone)


def tidied(store: Store) -> int:
    """Remove temporaries of dead writers, notes of runs that are gone and empty folders; return the bytes freed."""
    freed = 0
    for folder in [store.shared, *(path for path in store.shared.rglob("*") if path.is_dir())]:
        if folder.is_dir():
            before = folder_bytes(folder)
            if remove_stale_temporaries(folder):
                freed += before - folder_bytes(folder)
    for stray in run_metadata.orphans(store):
        stray.unlink(missing_ok=True)
    for folder in (store.shared / "weights").glob("*"):
        half_made = folder.name.startswith("verify-") or folder.suffix == ".tmp"
        if half_made and time.time() - folder.stat().st_mtime > STALE_AFTER_SECONDS:
            freed += folder_bytes(folder)
            shutil.rmtree(folder, ignore_errors=True)
    for folder in (store.shared / "prepared").glob("*"):
        with suppress(OSError):
            folder.rmdir()
    return freed


def _wrong(field: str, type: str, msg: str, given: object = None) -> RecipeError:
    return RecipeError([FieldError(loc=(field,), type=type, msg=msg, input=given)])


def root_of(store: Path) -> Store:
    """The store in a folder that must be there. Raises: StoreNotFound."""
    if not store.is_dir():
        raise StoreNotFound(store)
    return Store(store)
