"""Decides what `evict` and `gc` remove before anything is touched: never what a kept run needs.

kept runs       every training, every encoding and every unfinished run, except those that should be removed
their needs     the artifacts they read, and the shared files that they and these artifacts reference

Light: standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from cache.inventory import Inventory, StoredArtifact
from cache.run_metadata import UnfinishedRun

UNFINISHED_DAYS = 7.0
"""Days without a write after which gc removes an unfinished run, unless --older-than says otherwise."""
PREPARED_AUDIO = "prepared audio; made again when it is read"
"""The reason for removing prepared audio that kept artifacts reference."""
_WRITES_SHARED_FILES = ("ingest", "encode")
"""Stages that write shared files before an artifact references them."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """One folder or file to remove."""

    path: str
    """Path inside the store: the folder of an artifact or unfinished run, or a shared file."""
    num_bytes: int
    why: str


@dataclass(kw_only=True)
class RemovalPlan:
    """What will be removed, and what is kept although its removal was requested."""

    artifacts: list[tuple[StoredArtifact, str]] = field(default_factory=list)
    """Artifact and reason."""
    unfinished: list[tuple[str, int, str]] = field(default_factory=list)
    """Name of the scratch folder, bytes, reason."""
    shared: list[Removal] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """One line per thing that is kept although its removal was requested."""
    notes: list[str] = field(default_factory=list)
    """Further remarks, one line each."""
    needed_by: tuple[str, ...] = ()
    """What needs the remaining files: keys of `errors.REMOVAL_COMMANDS`. Set where there is a size limit."""
    needed_bytes: int = 0
    """Bytes of the remaining files that are needed. Set where there is a size limit."""

    @property
    def num_bytes(self) -> int:
        """Bytes that the removal frees."""
        folders = sum(artifact.num_bytes for artifact, _ in self.artifacts)
        return folders + sum(size for _, size, _ in self.unfinished) + sum(one.num_bytes for one in self.shared)

    def removals(self) -> list[Removal]:
        """Every removal, with its path inside the store."""
        artifacts = [
            Removal(path=f"{one.directory.parent.name}/{one.directory.name}", num_bytes=one.num_bytes, why=why)
            for one, why in self.artifacts
        ]
        runs = [Removal(path=f"scratch/{name}", num_bytes=size, why=why) for name, size, why in self.unfinished]
        shared = [replace(one, path=f"shared/{one.path}") for one in self.shared]
        return [*artifacts, *runs, *shared]

    def removed_keys(self) -> set[str]:
        """Fingerprints of the artifacts and names of the unfinished runs that will be removed."""
        return {one.receipt.fingerprint for one, _ in self.artifacts} | {name for name, _, _ in self.unfinished}


def eviction_plan(
    contents: Inventory, requested: Callable[[StoredArtifact], bool], runs: Sequence[tuple[str, int]] = ()
) -> RemovalPlan:
    """Removes the requested artifacts that no kept run needs, the given unfinished runs, and files only they reference.

    Args:
        runs: unfinished runs to remove: name of the scratch folder, bytes.
    """
    plan = RemovalPlan(unfinished=[(name, size, "asked for") for name, size in runs])
    chosen = {artifact.receipt.fingerprint: artifact for artifact in contents.artifacts if requested(artifact)}
    removed_runs = {name for name, _ in runs}
    while needed := [one for one in chosen if contents.dependents(one, without=removed_runs | chosen.keys())]:
        for fingerprint in needed:
            artifact = chosen.pop(fingerprint)
            needed_by = ", ".join(contents.dependents(fingerprint, without=removed_runs | chosen.keys()))
            plan.kept.append(f"{artifact.name} is kept: {needed_by} needs it")
    plan.artifacts = [(artifact, "asked for") for artifact in chosen.values()]
    choose_shared_files(contents, plan)
    return plan


def gc_plan(contents: Inventory, idle: Sequence[tuple[str, int, float]], days: float, *, prepared: bool) -> RemovalPlan:
    """Removes what no kept run needs: old unfinished runs, unread ingests, shared files that nothing references.

    Args:
        idle: unfinished runs that no process works on: name, bytes, days since the last write.
        days: what is younger is kept.
        prepared: also remove all prepared audio, which is made again when it is read.
    """
    state = {run.name: run.state for run in contents.unfinished}
    plan = RemovalPlan(
        unfinished=[(name, size, f"{state[name]}, idle for {age:.0f} days") for name, size, age in idle if age >= days]
    )
    removed_runs = {name for name, _, _ in plan.unfinished}
    for artifact in contents.artifacts:
        receipt = artifact.receipt
        unread = receipt.stage == "ingest" and not contents.dependents(receipt.fingerprint, without=removed_runs)
        if unread and days_since(receipt.finished) >= days:
            plan.artifacts.append((artifact, "no kept run reads it"))
    choose_shared_files(contents, plan, prepared=prepared)
    return plan


def fit_budget(contents: Inventory, plan: RemovalPlan, total_bytes: int, max_bytes: int) -> bool:
    """Extend a plan until the store holds at most `max_bytes`; return whether that was possible.

    Removes all prepared audio first, then encodings that nothing reads, oldest first. Trainings are always kept.
    """
    if total_bytes - plan.num_bytes > max_bytes:
        choose_shared_files(contents, plan, prepared=True)
    removed = plan.removed_keys()
    candidates = [artifact for artifact in contents.artifacts if artifact.receipt.stage != "train"]
    for artifact in sorted(candidates, key=lambda one: (_REMOVAL_ORDER[one.receipt.stage], one.receipt.finished)):
        if total_bytes - plan.num_bytes <= max_bytes:
            break
        fingerprint = artifact.receipt.fingerprint
        if fingerprint not in removed and not contents.dependents(fingerprint, without=removed):
            removed.add(fingerprint)
            plan.artifacts.append((artifact, "no kept training reads it, and space is needed"))
            choose_shared_files(contents, plan, prepared=True)
    _record_needs(contents, plan)
    return total_bytes - plan.num_bytes <= max_bytes


_REMOVAL_ORDER = {"encode": 0, "ingest": 1}


def _record_needs(contents: Inventory, plan: RemovalPlan) -> None:
    """Record in the plan what needs the remaining files, and their bytes."""
    removed = plan.removed_keys()
    artifacts = [artifact for artifact in contents.artifacts if artifact.receipt.fingerprint not in removed]
    needs = {
        "finished trainings": any(artifact.receipt.stage == "train" for artifact in artifacts),
        "unfinished runs": any(run.name not in removed for run in contents.unfinished),
    }
    shared = sum(contents.shared.values()) - sum(one.num_bytes for one in plan.shared)
    plan.needed_by = tuple(name for name, needed in needs.items() if needed)
    plan.needed_bytes += shared + sum(artifact.num_bytes for artifact in artifacts)


def choose_shared_files(contents: Inventory, plan: RemovalPlan, *, prepared: bool = False) -> None:
    """Set the shared files to remove: those that no kept artifact references, and prepared audio on request.

    While an unfinished ingest or encoding is kept, so are unreferenced files: it may have written them, and resumes
    from them.
    """
    removed = plan.removed_keys()
    unreferenced = set(contents.shared)
    for artifact in contents.artifacts:
        if artifact.receipt.fingerprint not in removed:
            unreferenced.difference_update(artifact.shared_files())
    unfinished = [run for run in contents.unfinished if run.name not in removed]
    writers = [run for run in unfinished if run.stage in _WRITES_SHARED_FILES]
    plan.shared = []
    for path, size in sorted(contents.shared.items()):
        if path.startswith("prepared/") and prepared and not unfinished:
            plan.shared.append(Removal(path=path, num_bytes=size, why=PREPARED_AUDIO))
        elif path in unreferenced and not writers:
            plan.shared.append(Removal(path=path, num_bytes=size, why="no artifact references it"))
    _note_kept(plan, "shared files that no artifact references are kept", writers)
    _note_kept(plan, "prepared audio is kept", unfinished if prepared else ())


def _note_kept(plan: RemovalPlan, what: str, runs: Sequence[UnfinishedRun]) -> None:
    """Say what is kept for these runs, and how to remove them; replaces an earlier line about the same."""
    plan.kept = [line for line in plan.kept if not line.startswith(what)]
    if runs:
        names = ", ".join(f"{run.state} {run.name}" for run in runs)
        that = "that run" if len(runs) == 1 else "those runs"
        remedy = f"`sa3-trainer evict {' '.join(run.short_name for run in runs)}` removes {that}"
        plan.kept.append(f"{what} for {names}: {remedy}")


def days_since(finished: str) -> float:
    """Days since a receipt's time; 0 where the time cannot be parsed."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(finished)).total_seconds() / 86400
    except (ValueError, TypeError):
        return 0.0
