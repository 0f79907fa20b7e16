"""Everything a store holds, and which run depends on what; read by status and gc. Light: standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cache.receipt import Receipt
from cache.run_metadata import UnfinishedRun, unfinished_runs
from cache.shared_files import iter_shared_files
from cache.store import Store, folder_bytes, iter_file_sizes

POOLS = ("latents", "prompts", "prepared", "weights")
"""Shared folders whose files belong to the artifacts that reference them. Other folders hold caches of no artifact.

Nothing references weights: versions before 0.7.0 wrote those of tiny-base into the store.
"""
_FILE_NAMES = {
    "latents": re.compile(r"[0-9a-f]{32}\.[a-z0-9]+"),
    "prompts": re.compile(r"[0-9a-f]{32}\.[a-z0-9]+"),
    "prepared": re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}[^/]*\.(flac|json)"),
    "weights": re.compile(r"(tiny-base-v1|verify-)[^/]*/.+"),
}
"""Files of a pool that belong to artifacts: not registries, temporary files, or files of other programs."""


@dataclass(frozen=True, kw_only=True)
class StoredArtifact:
    """One finished artifact."""

    receipt: Receipt
    num_bytes: int
    """Bytes in its own folder."""
    directory: Path

    @property
    def name(self) -> str:
        """The name printed, such as `encode 0a810e2ef096`."""
        return f"{self.receipt.stage} {self.receipt.fingerprint[:12]}"

    def shared_files(self) -> Iterator[str]:
        """Paths inside the shared folder that it references; with each prepared FLAC file, its JSON file."""
        for path, _ in iter_shared_files(self.directory):
            yield path
            if path.endswith(".flac"):
                yield f"{path.removesuffix('.flac')}.json"


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """Everything a store holds at one moment."""

    artifacts: tuple[StoredArtifact, ...]
    unfinished: tuple[UnfinishedRun, ...]
    shared: Mapping[str, int]
    """Bytes by path inside the shared folder, of the files in `POOLS` that artifacts may reference."""

    def dependents(self, fingerprint: str, without: Iterable[str] = ()) -> list[str]:
        """Printed names of the artifacts and unfinished runs that read an artifact.

        Args:
            without: fingerprints of artifacts, and names of unfinished runs, that are left out.
        """
        left_out = set(without)
        return [name for name, key in self._dependents.get(fingerprint, ()) if key not in left_out]

    @cached_property
    def _dependents(self) -> dict[str, list[tuple[str, str]]]:
        """Fingerprint -> (printed name, key for `without`) of every artifact or run that reads it."""
        readers = [(one.receipt.inputs, one.name, one.receipt.fingerprint) for one in self.artifacts]
        readers += [(run.inputs, f"unfinished {run.short_name}", run.name) for run in self.unfinished]
        found: dict[str, list[tuple[str, str]]] = {}
        for inputs, name, key in readers:
            for fingerprint in inputs.values():
                found.setdefault(fingerprint, []).append((name, key))
        return found


def inventory(store: Store, pools: Iterable[str] = POOLS) -> Inventory:
    """The inventory of a store: one small read per artifact, one stat per shared file of the given pools.

    Raises:
        ReceiptDamaged: nothing can be decided, since the damaged artifact might depend on anything.
    """
    return Inventory(
        artifacts=tuple(_artifact(store, receipt) for receipt in store.receipts()),
        unfinished=tuple(unfinished_runs(store)),
        shared={path: size for pool in pools for path, size in _pool_files(store, pool)},
    )


def _pool_files(store: Store, pool: str) -> Iterator[tuple[str, int]]:
    """(path inside the shared folder, bytes) of the files in a pool that artifacts may reference."""
    for name, size in iter_file_sizes(store.shared / pool):
        if _FILE_NAMES[pool].fullmatch(name):
            yield f"{pool}/{name}", size


def _artifact(store: Store, receipt: Receipt) -> StoredArtifact:
    directory = store.directory(receipt.stage, receipt.fingerprint)
    return StoredArtifact(receipt=receipt, num_bytes=folder_bytes(directory), directory=directory)
