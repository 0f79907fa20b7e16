"""What `evict` and `gc` remove, decided before anything is touched; never what a kept run needs.

a kept run      every training, every encoding, every unfinished run that nobody asked to remove
needs           its inputs, and the shared files these and it name
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from cache.inventory import Inventory, StoredArtifact
from cache.run_metadata import UnfinishedRun

UNFINISHED_DAYS = 7.0
"""An unfinished run that nothing was written to for so long is garbage, unless told otherwise."""
PREPARED = "prepared audio; made again when it is read"
"""Why prepared audio goes that nothing else is wrong with."""
_MAKES_SHARED = ("ingest", "encode")
"""Stages that leave shared files before anything names them."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """One thing to remove."""

    path: str
    """Inside the store: an artifact's or unfinished run's folder, or a shared file."""
    num_bytes: int
    why: str


@dataclass(kw_only=True)
class Decision:
    """What goes and what was asked to go but stays."""

    artifacts: list[tuple[StoredArtifact, str]] = field(default_factory=list)
    """With the reason."""
    unfinished: list[tuple[str, int, str]] = field(default_factory=list)
    """Name of the scratch folder, bytes, reason."""
    shared: list[Removal] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """One line per thing that stays although it was asked for."""
    notes: list[str] = field(default_factory=list)
    """What else a person should know, in a line each."""
    needed_by: tuple[str, ...] = ()
    """Who needs what is left, of `errors.REMOVAL_COMMANDS`; filled in where a size was asked for."""
    needed_bytes: int = 0
    """Of what is left, the bytes they need."""

    @property
    def num_bytes(self) -> int:
        """All that would be freed."""
        own = sum(artifact.num_bytes for artifact, _ in self.artifacts) + sum(size for _, size, _ in self.unfinished)
        return own + sum(one.num_bytes for one in self.shared)

    def removals(self) -> list[Removal]:
        """Everything, as a list for people and programs."""
        artifacts = [
            Removal(
                path=f"{artifact.directory.parent.name}/{artifact.directory.name}",
                num_bytes=artifact.num_bytes,
                why=why,
            )
            for artifact, why in self.artifacts
        ]
        runs = [Removal(path=f"scratch/{name}", num_bytes=size, why=why) for name, size, why in self.unfinished]
        shared = [replace(one, path=f"shared/{one.path}") for one in self.shared]
        return [*artifacts, *runs, *shared]


def evicted(
    held: Inventory, wanted: Callable[[StoredArtifact], bool], runs: Sequence[tuple[str, int]] = ()
) -> Decision:
    """Drop the artifacts asked for that no kept run needs, the unfinished runs asked for, and what only they named.

    Args:
        runs: unfinished runs to drop, by name of their scratch folder, with their bytes.
    """
    decision = Decision(unfinished=[(name, size, "asked for") for name, size in runs])
    chosen = {artifact.receipt.fingerprint: artifact for artifact in held.artifacts if wanted(artifact)}
    dropped = {name for name, _ in runs}
    while blocked := [one for one in chosen if held.dependents(one, without=dropped | chosen.keys())]:
        for fingerprint in blocked:
            artifact = chosen.pop(fingerprint)
            needed_by = ", ".join(held.dependents(fingerprint, without=dropped | chosen.keys()))
            decision.kept.append(f"{artifact.name} is kept: {needed_by} needs it")
    decision.artifacts = [(artifact, "asked for") for artifact in chosen.values()]
    sweep(held, decision)
    return decision


def collected(held: Inventory, idle: Sequence[tuple[str, int, float]], days: float, *, prepared: bool) -> Decision:
    """Drop what no kept run needs: long unfinished runs, ingests nobody reads, shared files nobody names.

    Args:
        idle: (name, bytes, days since anything was written) of the unfinished runs nobody is at work on.
        days: what is younger stays.
        prepared: drop all prepared audio as well; it is made again when it is read.
    """
    word = {run.name: run.state for run in held.unfinished}
    decision = Decision(
        unfinished=[(name, size, f"{word[name]}, idle for {age:.0f} days") for name, size, age in idle if age >= days]
    )
    gone = {name for name, _, _ in decision.unfinished}
    for artifact in held.artifacts:
        unread = artifact.receipt.stage == "ingest" and not held.dependents(artifact.receipt.fingerprint, without=gone)
        if unread and days_since(artifact.receipt.finished) >= days:
            decision.artifacts.append((artifact, "no kept run reads it"))
    sweep(held, decision, prepared=prepared)
    return decision


def within_budget(held: Inventory, decision: Decision, total: int, max_bytes: int) -> bool:
    """Drop more until the store holds at most `max_bytes`; True when that is reached.

    First all prepared audio, then encodings that nobody reads, oldest first. Trainings are never dropped for room.
    """
    if total - decision.num_bytes > max_bytes:
        sweep(held, decision, prepared=True)
    going = {artifact.receipt.fingerprint for artifact, _ in decision.artifacts}
    going |= {name for name, _, _ in decision.unfinished}
    spare = [artifact for artifact in held.artifacts if artifact.receipt.stage != "train"]
    for artifact in sorted(spare, key=lambda one: (_DOWNSTREAM_FIRST[one.receipt.stage], one.receipt.finished)):
        if total - decision.num_bytes <= max_bytes:
            break
        if artifact.receipt.fingerprint not in going and not held.dependents(
            artifact.receipt.fingerprint, without=going
        ):
            going.add(artifact.receipt.fingerprint)
            decision.artifacts.append((artifact, "no kept training reads it, and room is needed"))
            sweep(held, decision, prepared=True)
    _weigh_needs(held, decision)
    return total - decision.num_bytes <= max_bytes


def _weigh_needs(held: Inventory, decision: Decision) -> None:
    """Say who needs what is left, and how much that is."""
    going = {artifact.receipt.fingerprint for artifact, _ in decision.artifacts}
    artifacts = [artifact for artifact in held.artifacts if artifact.receipt.fingerprint not in going]
    dropped = {name for name, _, _ in decision.unfinished}
    needs = {
        "finished trainings": any(artifact.receipt.stage == "train" for artifact in artifacts),
        "unfinished runs": any(run.name not in dropped for run in held.unfinished),
    }
    shared = sum(held.shared.values()) - sum(one.num_bytes for one in decision.shared)
    decision.needed_by = tuple(name for name, there in needs.items() if there)
    decision.needed_bytes += shared + sum(artifact.num_bytes for artifact in artifacts)


_DOWNSTREAM_FIRST = {"encode": 0, "ingest": 1}


def sweep(held: Inventory, decision: Decision, *, prepared: bool = False) -> None:
    """Choose the shared files to remove: what no artifact names that stays.

    While an unfinished ingest or encoding stays, unnamed files stay too: it may have made them, and goes on from them.
    """
    going = {artifact.receipt.fingerprint for artifact, _ in decision.artifacts}
    dropped = {name for name, _, _ in decision.unfinished}
    unnamed = set(held.shared)
    for artifact in held.artifacts:
        if artifact.receipt.fingerprint not in going:
            unnamed.difference_update(artifact.shared_files())
    staying = [run for run in held.unfinished if run.name not in dropped]
    at_work = [run for run in staying if run.stage in _MAKES_SHARED]
    fed = prepared and not staying
    decision.shared = []
    for path, size in sorted(held.shared.items()):
        if path.startswith("prepared/") and fed:
            decision.shared.append(Removal(path=path, num_bytes=size, why=PREPARED))
        elif path in unnamed and not at_work:
            decision.shared.append(Removal(path=path, num_bytes=size, why="no artifact names it"))
    _say_once(decision, "shared files that no artifact names are kept", at_work)
    _say_once(decision, "prepared audio is kept", staying if prepared else ())


def _say_once(decision: Decision, what: str, runs: Sequence[UnfinishedRun]) -> None:
    """What is kept for these runs, and how to let it go; the last line about it counts."""
    decision.kept = [one for one in decision.kept if not one.startswith(what)]
    if runs:
        names = ", ".join(f"{run.state} {run.name}" for run in runs)
        that = "that run" if len(runs) == 1 else "those runs"
        remedy = f"`sa3-trainer evict {' '.join(run.short_name for run in runs)}` drops {that}"
        decision.kept.append(f"{what} for {names}: {remedy}")


def days_since(finished: str) -> float:
    """Days since a receipt's time; a time that cannot be read counts as now."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(finished)).total_seconds() / 86400
    except (ValueError, TypeError):
        return 0.0
