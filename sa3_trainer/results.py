"""What the calls return, raise and report. Light: standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class TrainerError(Exception):
    """A call cannot go on; the message says what, why and what to change."""

    def __init__(self, message: str, type: str, detail: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(message)
        self.type = type
        """What went wrong, for programs: such as `RecipeError` or `DatasetFaults`."""
        self.detail = tuple(detail)
        """One entry per field or file, with `loc`, `type` and `msg`."""


class Stopped(TrainerError):
    """The call was asked to stop. Finished work is kept, and the same call goes on from there."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened: `phase`, `progress`, `message` and so on, as docs/formats.md lists them."""

    kind: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """What would be done about one stage, and why."""

    stage: str
    state: str
    """`HIT`: it is in the store; `RESUME`: a part of it is; `MISS`: it must be made."""
    reason: str
    fingerprint: str | None
    """Name of its result; None while something that it depends on is not known."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a call would do."""

    stages: tuple[PlannedStage, ...]

    @property
    def nothing_to_do(self) -> bool:
        """Whether every result is in the store."""
        return all(one.state == "HIT" for one in self.stages)


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """A finished result in the store."""

    stage: str
    fingerprint: str
    reused: bool
    """Whether it was there before the call."""
    directory: Path
    facts: Mapping[str, Any]
    """Of its receipt: counts, sizes, losses."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a call made, or found in the store."""

    stages: Mapping[str, StageResult]
    """By stage, in their order."""
    files: tuple[Path, ...]
    """Files in the output folder: those of a training."""

    @property
    def adapter(self) -> Path | None:
        """The adapter file; None where nothing was trained."""
        return next((file for file in self.files if file.suffix == ".safetensors"), None)

    @property
    def config(self) -> Mapping[str, Any]:
        """The JSON beside the adapter: the request as resolved, losses before and after; empty without a training."""
        file = next((file for file in self.files if file.suffix == ".json"), None)
        return json.loads(file.read_text(encoding="utf-8")) if file else {}
