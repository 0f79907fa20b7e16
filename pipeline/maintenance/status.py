"""The `status` command: artifacts, their sizes, and which runs use them. Only receipts and file sizes are read.

Light: standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cache import run_metadata
from cache.inventory import Inventory, StoredArtifact, inventory
from cache.shared_files import iter_shared_files
from cache.store import Store
from pipeline.execution.command_line import REQUEST
from pipeline.report import summary
from pipeline.store_option import store_option, with_store
from stages.plural import moment, pluralized, size

COUNTED_POOLS = ("latents", "prompts")
"""Pools whose files are counted one by one. There may be millions of prepared clips: only their bytes are added up."""


def status_json(store: Store) -> dict[str, Any]:
    """What a store holds, for programs."""
    contents, sizes = inventory(store, COUNTED_POOLS), store.sizes()
    return {
        "store": str(store.root),
        "artifacts": [_artifact_json(contents, artifact) for artifact in contents.artifacts],
        "unfinished": [_unfinished_json(store, run) for run in contents.unfinished],
        "shared": {pool: _pool_json(contents, pool, num_bytes) for pool, num_bytes in sizes.shared.items()},
        "num_bytes": sizes.total,
    }


def status_lines(store: Store) -> list[str]:
    """What a store holds, for people."""
    document = status_json(store)
    if not document["artifacts"] and not document["unfinished"]:
        state = "is empty" if store.root.exists() else "does not exist"
        return [f"{store.root} {state}; `sa3-trainer run DATA{store_option(store.root)}` creates the first artifact"]
    rows = [line for entry in document["artifacts"] for line in _artifact_lines(entry)]
    unfinished = [line for one in document["unfinished"] for line in _unfinished_lines(one)]
    shared = [_pool_line(pool, entry) for pool, entry in document["shared"].items()]
    lines = [*rows, *unfinished, *shared, f"{'total':<20} {size(document['num_bytes']):>10}"]
    return [with_store(line, store.root) for line in lines]


def _artifact_lines(entry: dict[str, Any]) -> list[str]:
    name, own = entry["fingerprint"][:12], size(entry["num_bytes"])
    line = f"{entry['stage']:<7} {name}  {own:>10}  {entry['summary']}"
    uses = [f"{stage} {name[:12]}" for stage, name in entry["uses"].items() if stage != "source"]
    needs = entry["needs"]
    parts = [f"uses {', '.join(uses)}"] if uses else []
    files = pluralized(needs["num_files"], needs["what"].removesuffix("s"))
    parts += [f"keeps {files} ({size(needs['num_bytes'])})"] if needs["num_files"] else []
    parts += [f"used by {', '.join(entry['used_by'])}"] if entry["used_by"] else []
    about = _about(entry, moment(entry["finished"]))
    return [line, *(f"        {'; '.join(one)}" for one in (about, parts) if one)]


def _about(entry: dict[str, Any], when: str, copied: str = "copied to") -> list[str]:
    """Of what, for which model, when, and where the file is (or will be): as far as it is recorded."""
    params, request = entry["params"], entry["request"]
    kind = [f"{params['adapter_type']} of rank {params.get('rank')}"] if "adapter_type" in params else []
    model = [f"for {params['model']}"] if "model" in params else []
    output = [f"{copied} {request['output']}"] if entry["stage"] == "train" and request.get("output") else []
    return [*filter(None, [request.get("data")]), *model, *kind, when, *output]


def _unfinished_lines(entry: dict[str, Any]) -> list[str]:
    if entry["num_problems"]:
        return [_refused_line(entry)]
    about = [*_about(entry, f"begun {moment(entry['began'])}" if entry["began"] else "", "goes to")]
    at = f"at step {entry['step']:,} of {entry['params'].get('number_of_steps', 0):,}" if entry["step"] else ""
    command = entry["request"].get("command")
    goes_on = f"`{command}` continues it" if command else "the same command continues it"
    line = f"unfinished {entry['name']}{f', {at}' if at else ''}: {goes_on}"
    return [line, *([f"        {'; '.join(filter(None, about))}"] if any(about) else [])]


def _refused_line(entry: dict[str, Any]) -> str:
    why = f"its dataset has {pluralized(entry['num_problems'], 'problem')}"
    remove = f"`sa3-trainer evict {entry['name'][:18]}` removes it"
    return f"refused {entry['name']}: {why}. Fix the files and run again; {remove}"


def _pool_line(pool: str, entry: dict[str, Any]) -> str:
    line = f"shared/{pool:<13} {size(entry['num_bytes']):>10}"
    if "num_files" not in entry:
        return line
    line = f"{line}  {pluralized(entry['num_files'], 'file')}"
    if not entry["num_unnamed"]:
        return line
    unused = f"{entry['num_unnamed']} ({size(entry['unnamed_bytes'])})"
    return f"{line}; {unused} not used by any artifact: `sa3-trainer gc` removes unused files"


def _artifact_json(contents: Inventory, artifact: StoredArtifact) -> dict[str, Any]:
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
        "used_by": contents.dependents(receipt.fingerprint),
        "needs": {"what": what, "num_files": num_files, "num_bytes": needed_bytes},
        "params": receipt.params,
        "request": dict(receipt.environment.get(REQUEST, {})),
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
        "request": dict(run.request),
        "step": _last_step(store.scratch_root / run.name),
    }


def _last_step(folder: Path) -> int:
    """Step of the last checkpoint of a stopped training; 0 where there is none."""
    names = (path.name.removeprefix("step-") for path in folder.glob("checkpoints/step-*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def _pool_json(contents: Inventory, pool: str, num_bytes: int) -> dict[str, Any]:
    """Bytes of a pool; for shards also the number of files, and how many of them no artifact references."""
    files = {path: count for path, count in contents.shared.items() if path.startswith(f"{pool}/")}
    if not files:
        return {"num_bytes": num_bytes}
    unnamed = _unreferenced(contents.artifacts, files)
    return {
        "num_bytes": num_bytes,
        "num_files": len(files),
        "num_unnamed": len(unnamed),
        "unnamed_bytes": sum(files[path] for path in unnamed),
    }


def _unreferenced(artifacts: Sequence[StoredArtifact], files: dict[str, int]) -> set[str]:
    """Those of these shards that no artifact references."""
    left = set(files)
    for artifact in artifacts:
        if artifact.receipt.stage != "ingest":  # references prepared clips only, perhaps a million
            left.difference_update(artifact.shared_files())
    return left
