"""What the store holds: artifacts, sizes, which runs use what. From receipts, lists of needs and file sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache import run_metadata
from cache.inventory import Inventory, StoredArtifact, inventory
from cache.shared_files import iter_shared_files
from cache.store import Store
from pipeline.report import summary
from stages.plural import pluralized

SHARDS = ("latents", "prompts")
"""Pools whose files are counted one by one. Prepared clips may be millions: their bytes are added up only."""


def status_json(store: Store) -> dict[str, Any]:
    """The store for programs."""
    held, sizes = inventory(store, SHARDS), store.sizes()
    return {
        "store": str(store.root),
        "artifacts": [_artifact_json(held, artifact) for artifact in held.artifacts],
        "unfinished": [_unfinished_json(store, run) for run in held.unfinished],
        "shared": {pool: _pool_json(held, pool, num_bytes) for pool, num_bytes in sizes.shared.items()},
        "num_bytes": sizes.total,
    }


def status_lines(store: Store) -> list[str]:
    """The store for people."""
    known = status_json(store)
    if not known["artifacts"] and not known["unfinished"]:
        return [f"{store.root} holds nothing yet; `sa3-trainer run DATA` makes the first artifact"]
    rows = [line for entry in known["artifacts"] for line in _rows(entry)]
    stopped = [_stopped_row(one) for one in known["unfinished"]]
    shared = [_pool_row(pool, entry) for pool, entry in known["shared"].items()]
    return [*rows, *stopped, *shared, f"{'in all':<20} {size(known['num_bytes']):>10}"]


def _rows(entry: dict[str, Any]) -> list[str]:
    name, own = entry["fingerprint"][:12], size(entry["num_bytes"])
    line = f"{entry['stage']:<7} {name}  {own:>10}  {entry['summary']}"
    uses = [f"{stage} {name[:12]}" for stage, name in entry["uses"].items() if stage != "source"]
    needs = entry["needs"]
    parts = [f"uses {', '.join(uses)}"] if uses else []
    named = pluralized(needs["num_files"], needs["what"].removesuffix("s"))
    parts += [f"names {named} ({size(needs['num_bytes'])})"] if needs["num_files"] else []
    parts += [f"used by {', '.join(entry['used_by'])}"] if entry["used_by"] else []
    return [line, *([f"        {'; '.join(parts)}"] if parts else [])]


def _stopped_row(entry: dict[str, Any]) -> str:
    if not entry["num_problems"]:
        return f"unfinished {entry['name']}: the same command goes on from there"
    why = f"its data has {pluralized(entry['num_problems'], 'problem')}"
    return f"refused {entry['name']}: {why}. Mend that and run again, or `sa3-trainer evict {entry['name'][:18]}`"


def _pool_row(pool: str, entry: dict[str, Any]) -> str:
    row = f"shared/{pool:<13} {size(entry['num_bytes']):>10}"
    if "num_files" not in entry:
        return row
    unnamed = f"; {entry['num_unnamed']} ({size(entry['unnamed_bytes'])}) named by no artifact: `sa3-trainer gc`"
    return f"{row}  {pluralized(entry['num_files'], 'file')}{unnamed if entry['num_unnamed'] else ''}"


def _artifact_json(held: Inventory, artifact: StoredArtifact) -> dict[str, Any]:
    receipt = artifact.receipt
    num_files = needed_bytes = 0
    for _, num_bytes in iter_shared_files(artifact.directory):
        num_files, needed_bytes = num_files + 1, needed_bytes + num_bytes
    what = "prepared clips" if receipt.stage == "ingest" else "shards"
    return {
        "stage": receipt.stage,
        "fingerprint": receipt.fingerprint,
        "finished": receipt.finished,
        "num_bytes": artifact.num_bytes,
        "uses": dict(receipt.inputs),
        "used_by": held.dependents(receipt.fingerprint),
        "needs": {"what": what, "num_files": num_files, "num_bytes": needed_bytes},
        "params": receipt.params,
        "facts": receipt.facts,
        "summary": summary(receipt.stage, receipt.facts),
        "directory": str(artifact.directory),
    }


def _unfinished_json(store: Store, run: run_metadata.UnfinishedRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "stage": run.stage,
        "began": run.began,
        "num_problems": run.num_problems,
        "num_bytes": run_metadata.num_bytes(store, run.name),
        "uses": dict(run.inputs),
        "params": dict(run.params),
    }


def _pool_json(held: Inventory, pool: str, num_bytes: int) -> dict[str, Any]:
    """Bytes of a pool; of those whose files artifacts name also how many there are, and how many nobody names."""
    files = {path: count for path, count in held.shared.items() if path.startswith(f"{pool}/")}
    if not files:
        return {"num_bytes": num_bytes}
    unnamed = _unnamed(held.artifacts, files)
    return {
        "num_bytes": num_bytes,
        "num_files": len(files),
        "num_unnamed": len(unnamed),
        "unnamed_bytes": sum(files[path] for path in unnamed),
    }


def _unnamed(artifacts: Sequence[StoredArtifact], files: dict[str, int]) -> set[str]:
    """Of these shards, those that no artifact names."""
    left = set(files)
    for artifact in artifacts:
        if artifact.receipt.stage != "ingest":  # those name prepared clips, perhaps a million of them, and no shard
            left.difference_update(artifact.shared_files())
    return left


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
