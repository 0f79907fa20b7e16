"""What an unfinished run is of, beside its scratch folder: so that upkeep knows what it still needs. Light.

scratch/<stage>-<identity>/       what the run has made so far
scratch/<stage>-<identity>.json   stage, fingerprint, identity, params, inputs, components, when it began
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cache.atomic_files import write_aside
from cache.store import Store, bytes_under


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A run that was begun and is not committed."""

    name: str
    """Of its scratch folder."""
    stage: str
    fingerprint: str = ""
    identity: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of what it reads; empty where the note is lost."""
    components: Mapping[str, str] = field(default_factory=dict)
    began: str = ""
    num_problems: int = 0
    """What its data was refused for; 0 where it was stopped, or is at work."""

    @property
    def short(self) -> str:
        """Its name as people see it, and as `evict` takes it."""
        return self.name[:18]

    @property
    def word(self) -> str:
        """What it is to people."""
        return "refused" if self.num_problems else "unfinished"


def note(store: Store, run: Unfinished) -> None:
    """Write down what a run about to begin is of."""
    write_aside(_file(store, run.name), json.dumps(asdict(run), sort_keys=True).encode())


def noted(store: Store, name: str) -> Unfinished:
    """What was written down of a run; as good as nothing where that is lost."""
    try:
        return Unfinished(**{**json.loads(_file(store, name).read_bytes()), "name": name})
    except (OSError, ValueError, TypeError):
        return Unfinished(name=name, stage=name.partition("-")[0])


def forget(store: Store, name: str) -> None:
    """The run is committed, or dropped."""
    with suppress(FileNotFoundError):
        _file(store, name).unlink()


def forget_stray(store: Store, name: str) -> None:
    """Remove the note of a run that was killed right after its commit; one with a scratch folder stays."""
    if not (store.root / "scratch" / name).is_dir():
        forget(store, name)


def unfinished(store: Store) -> list[Unfinished]:
    """Every run with a scratch folder, by name."""
    scratch = store.root / "scratch"
    folders = sorted(path.name for path in scratch.iterdir() if path.is_dir()) if scratch.is_dir() else []
    return [noted(store, name) for name in folders]


def strays(store: Store) -> list[Path]:
    """Notes of runs whose folder is gone: killed between commit and tidying up."""
    return sorted(path for path in (store.root / "scratch").glob("*.json") if not path.with_suffix("").is_dir())


def idle_seconds(store: Store, name: str) -> float:
    """How long nothing was written in a run's scratch folder."""
    folder = store.root / "scratch" / name
    stamps = [folder.stat().st_mtime, *(path.stat().st_mtime for path in folder.rglob("*"))]
    return time.time() - max(stamps)


def num_bytes(store: Store, name: str) -> int:
    """What a run has written to its scratch folder."""
    return bytes_under(store.root / "scratch" / name)


def _file(store: Store, name: str) -> Path:
    return store.root / "scratch" / f"{name}.json"
