"""What the store holds: artifacts, sizes, and what each run used. From receipts and file sizes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cache.receipt import Receipt
from cache.store import Store
from pipeline.report import summary


def status_json(store: Store) -> dict[str, Any]:
    """The store for programs."""
    receipts = store.receipts()
    return {
        "store": str(store.root),
        "artifacts": [_artifact_json(store, receipt) for receipt in receipts],
        "unfinished": sorted(path.name for path in (store.root / "scratch").glob("*") if path.is_dir()),
        "shared": {path.name: num_bytes(path) for path in sorted(store.shared.glob("*")) if path.is_dir()},
    }


def status_lines(store: Store) -> list[str]:
    """The store for people."""
    known = status_json(store)
    if not known["artifacts"] and not known["unfinished"]:
        return [f"{store.root} holds nothing yet; `sa3-trainer run DATA` makes the first artifact"]
    rows = [_row(entry) for entry in known["artifacts"]]
    unfinished = [f"unfinished {name}: the same command goes on from there" for name in known["unfinished"]]
    shared = [f"shared/{name:<10} {_size(size):>10}" for name, size in known["shared"].items()]
    return [*rows, *unfinished, *shared]


def _row(entry: dict[str, Any]) -> str:
    name, size = entry["fingerprint"][:12], _size(entry["num_bytes"])
    return f"{entry['stage']:<7} {name}  {size:>10}  {entry['summary']}"


def _artifact_json(store: Store, receipt: Receipt) -> dict[str, Any]:
    return {
        "stage": receipt.stage,
        "fingerprint": receipt.fingerprint,
        "finished": receipt.finished,
        "num_bytes": sum(entry.num_bytes for entry in receipt.files),
        "uses": dict(receipt.inputs),
        "params": receipt.params,
        "facts": receipt.facts,
        "summary": summary(receipt.stage, receipt.facts),
        "directory": str(store.directory(receipt.stage, receipt.fingerprint)),
    }


def num_bytes(directory: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
