"""Metadata of runs that are not committed, stored beside their scratch folders and read by gc.

scratch/<stage>-<identity>/       what the run has made so far
scratch/<stage>-<identity>.json   stage, fingerprint, identity, params, inputs, components, start time

Light: standard library only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cache.files.atomic_files import atomic_write_bytes
from cache.files.regular_file import read_regular
from cache.store import Store, folder_bytes


@dataclass(frozen=True, kw_only=True)
class UnfinishedRun:
    """A run that was started and is not committed."""

    name: str
    """Name of its scratch folder."""
    stage: str
    fingerprint: str = ""
    identity: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the artifacts it reads; empty where the metadata is lost."""
    components: Mapping[str, str] = field(default_factory=dict)
    began: str = ""
    num_problems: int = 0
    """Number of problems its dataset was refused for; 0 for a run that was interrupted or is in progress."""

    request: Mapping[str, str] = field(default_factory=dict)
    """What was asked for, as people know it: the data, the command, the output file."""

    @property
    def short_name(self) -> str:
        """The name printed, and accepted by `evict`."""
        return self.name[:18]

    @property
    def state(self) -> str:
        """`refused` or `unfinished`."""
        return "refused" if self.num_problems else "unfinished"


def write(store: Store, run: UnfinishedRun) -> None:
    """Stores the metadata of a run about to start."""
    atomic_write_bytes(_file(store, run.name), json.dumps(asdict(run), sort_keys=True).encode())


def read(store: Store, name: str) -> UnfinishedRun:
    """The stored metadata of a run; only its name and stage where that is lost."""
    try:
        return UnfinishedRun(**{**json.loads(read_regular(_file(store, name))), "name": name})
    except (OSError, ValueError, TypeError):
        return UnfinishedRun(name=name, stage=name.partition("-")[0])


def remove(store: Store, name: str) -> None:
    """Removes the metadata of a run that is committed or dropped."""
    file = _file(store, name)
    if file.exists():  # on a read-only disk, removing a file is refused even where there is none
        with suppress(FileNotFoundError):
            file.unlink()


def remove_orphan(store: Store, name: str) -> None:
    """Removes the metadata of a run that was killed right after its commit, that is, one without a scratch folder."""
    if not _folder(store, name).is_dir():
        remove(store, name)


def unfinished_runs(store: Store) -> list[UnfinishedRun]:
    """Every run with a scratch folder, by name."""
    scratch = store.scratch_root
    names = sorted(path.name for path in scratch.iterdir() if path.is_dir()) if scratch.is_dir() else []
    return [read(store, name) for name in names]


def orphans(store: Store) -> list[Path]:
    """Metadata files of runs whose folder is gone: killed between commit and cleanup."""
    return sorted(path for path in store.scratch_root.glob("*.json") if not path.with_suffix("").is_dir())


def idle_seconds(store: Store, name: str) -> float:
    """Time since something was last written in a run's scratch folder."""
    folder = _folder(store, name)
    times = [folder.stat().st_mtime, *(path.stat().st_mtime for path in folder.rglob("*"))]
    return time.time() - max(times)


def num_bytes(store: Store, name: str) -> int:
    """Bytes in a run's scratch folder."""
    return folder_bytes(_folder(store, name))


def _folder(store: Store, name: str) -> Path:
    return store.scratch_root / name


def _file(store: Store, name: str) -> Path:
    return store.scratch_root / f"{name}.json"
