"""What a plan is made of: one stage's run, hit, resume or miss, and the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from cache.store import Store
from stages.contract import Stage


class State(Enum):
    """Whether a stage's result is there."""

    HIT = "HIT"
    RESUME = "RESUME"
    MISS = "MISS"


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One stage of a plan."""

    stage: Stage[Any]
    params: Any
    inputs: Mapping[str, str]
    """Fingerprints of what it reads, by name."""
    components: Mapping[str, str]
    """Digests of the weights it reads."""
    fingerprint: str | None
    """Name of its result; None while something it depends on is not there yet."""
    identity: str | None
    """Name of its run: the same for a longer training of the same thing."""
    state: State
    reason: str

    @property
    def record(self) -> dict[str, Any]:
        """All that decides the result, as it is hashed."""
        return {
            "version": self.stage.version,
            "params": asdict(self.params),
            "inputs": dict(self.inputs),
            "components": dict(self.components),
        }


def scratch_of(run: StageRun, store: Store) -> Path:
    """Where an unfinished run works: named by the run, so that running again is resuming.

    Unless a longer run of the same identity was stopped there: a shorter one works elsewhere, and leaves it be.
    """
    shared = store.scratch(run.stage.name, str(run.identity))
    return (
        store.scratch(run.stage.name, str(run.fingerprint)) if run.stage.exceeds_request(shared, run.params) else shared
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages of a request, in order."""

    runs: tuple[StageRun, ...]

    @property
    def nothing_to_do(self) -> bool:
        return all(run.state is State.HIT for run in self.runs)
