"""A plan and its stage runs: hit, resume or miss, each with the reason. Light: standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from cache.store import Store
from stages.contract import Stage


class State(Enum):
    """Whether the store holds a stage's result."""

    HIT = "HIT"
    RESUME = "RESUME"
    MISS = "MISS"


def state_in_words(state: State, *, changed: bool) -> str:
    """`done`, `goes on`, `changed` or `new`: what people read in place of the names that programs match on."""
    if state is State.MISS:
        return "changed" if changed else "new"
    return {State.HIT: "done", State.RESUME: "goes on"}[state]


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One stage of a plan."""

    stage: Stage[Any]
    params: Any
    inputs: Mapping[str, str]
    """Fingerprints of the artifacts or data it reads, by name."""
    components: Mapping[str, str]
    """Digests of the weights it reads, by component."""
    fingerprint: str | None
    """Name of its artifact; None while something it depends on is unknown."""
    identity: str | None
    """Name of its run: shared by shorter and longer trainings that can continue one another."""
    state: State
    reason: str
    changed: bool = False
    """A miss that differs from an earlier result, as `reason` says."""

    @property
    def word(self) -> str:
        """The state for people."""
        return state_in_words(self.state, changed=self.changed)

    @property
    def record(self) -> dict[str, Any]:
        """Everything that decides the result, as it is hashed."""
        return {
            "version": self.stage.version,
            "params": asdict(self.params),
            "inputs": dict(self.inputs),
            "components": dict(self.components),
        }


def scratch_folder(run: StageRun, store: Store) -> Path:
    """Where an unfinished run works: named by the run's identity, so that running it again resumes it.

    A shorter run does not touch the folder of a longer interrupted one: it gets a folder of its own. So does a finished
    training whose receipt was lost, since its identity was lost with it.
    """
    shared = store.scratch(run.stage.name, str(run.identity))
    own = store.scratch(run.stage.name, str(run.fingerprint))
    repaired = own.is_dir() and not shared.is_dir()
    return own if repaired or run.stage.exceeds_request(shared, run.params) else shared


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages of a request, in order."""

    runs: tuple[StageRun, ...]

    @property
    def nothing_to_do(self) -> bool:
        """Whether every stage is a hit."""
        return all(run.state is State.HIT for run in self.runs)
