"""What is logged of the events that a command prints (docs/formats.md). Light: standard library only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MARKS = 100
"""Progress is logged about this many times per stage: callers print every line of every poll."""
_FACTS = ("stage", "done", "total", "loss", "learning_rate", "steps_per_second", "seconds_left")
_WORDS = {"HIT": "done", "RESUME": "goes on"}
"""States of a plan for people."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a job's log."""

    message: str
    level: str = "INFO"
    progress: Mapping[str, Any] | None = None

    def more(self) -> dict[str, Any]:
        """What is logged beside the message."""
        return {"progress": dict(self.progress)} if self.progress else {}


@dataclass
class LogLines:
    """Turns what a command prints into lines of a log; progress passes when another hundredth is done."""

    _last: dict[tuple[str, int], int] = field(default_factory=dict)

    def of(self, printed: str) -> Iterator[Line]:
        """The lines for one printed line: an event, or the words of a fault."""
        try:
            event = json.loads(printed)
        except ValueError:
            event = None
        if not isinstance(event, dict) or "event" not in event:
            yield from [Line(message=printed, level="STDERR")] if printed.strip() else []
            return
        told = _TOLD.get(str(event["event"]))
        for line in told(event) if told else ():
            if line.progress is None or self._is_due(line.progress):
                yield line

    def _is_due(self, progress: Mapping[str, Any]) -> bool:
        stage, done, total = progress["stage"], progress["done"], max(1, progress["total"])
        mark = MARKS * done // total
        if self._last.get((stage, total)) == mark:
            return False
        self._last[stage, total] = mark
        return True


def _plan(event: Mapping[str, Any]) -> Iterator[Line]:
    for run in event["stages"]:
        yield Line(message=f"{run['stage']:<7} {_WORDS.get(run['state'], 'new'):<7} {run['reason']}")
    if event["nothing_to_do"]:
        yield Line(message="nothing to do: every result is in the store")


def _progress(event: Mapping[str, Any]) -> Iterator[Line]:
    progress = {name: event[name] for name in _FACTS if event.get(name) is not None}
    words = [f"{event['stage']:<7} {event['done']}/{event['total']}"]
    words += [f"loss {progress['loss']:.4f}"] if "loss" in progress else []
    words += [f"{progress['seconds_left']:.0f} s left"] if "seconds_left" in progress else []
    yield Line(message="  ".join(words), progress=progress)


def _text(event: Mapping[str, Any]) -> Iterator[Line]:
    yield Line(message=str(event["text"]))


def _stage(event: Mapping[str, Any]) -> Iterator[Line]:
    if not event["reused"]:
        yield Line(message=f"{event['stage']:<7} done")


def _error(event: Mapping[str, Any]) -> Iterator[Line]:
    yield Line(message=f"error: {event['message']}", level="ERROR")


_TOLD: Mapping[str, Callable[[Mapping[str, Any]], Iterator[Line]]] = {
    "plan": _plan,
    "phase": _text,
    "progress": _progress,
    "message": _text,
    "stage": _stage,
    "error": _error,
}
"""Events that are logged; the others say nothing to a caller."""
