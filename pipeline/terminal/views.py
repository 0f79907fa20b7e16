"""How a report is shown: as lines of a log, or as JSON events. Light: standard library only."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TextIO

from pipeline.terminal.activity import Activity
from pipeline.terminal.words import log_line, waiting_line

LINE_SECONDS = 5.0
"""Least time between two progress lines of a log."""
PHASE_SECONDS, WAITING_SECONDS = 3.0, 60.0
"""A log names a phase that lasts so long, and says what is done when nothing was written for so long."""
EVENT_SECONDS = 0.5
"""Least time between two progress events."""
EVENTS_VERSION = 1


class View(Protocol):
    """Shows what a report is told. Methods may be called by the thread that ticks, too."""

    tick_seconds: float
    wants_interim: bool
    """Whether progress between two lines of a log is of use."""

    def tell(self, event: str, facts: Mapping[str, Any], lines: Sequence[str]) -> None:
        """Something happened: `facts` for programs, `lines` for people."""

    def show(self, activity: Activity, *, due: bool) -> None:
        """The activity has changed; `due`: a log has a line of it."""

    def tick(self, activity: Activity) -> None:
        """Some time has passed."""

    def end(self) -> None:
        """The activity is over."""


class LogView:
    """Lines that stay, for a file, a pipe or a terminal that cannot redraw a line."""

    tick_seconds, wants_interim = 1.0, False

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.clock = stream, clock
        self.last_line, self.last_progress = clock(), -math.inf
        self.named = ""
        """The phase that was written last."""

    def tell(self, event: str, facts: Mapping[str, Any], lines: Sequence[str]) -> None:
        """Write the lines."""
        for line in lines:
            self._write(line)

    def show(self, activity: Activity, *, due: bool) -> None:
        """Write the progress if it is due, or none was written for a while."""
        if activity.phase:
            return
        if due or self.clock() - self.last_progress >= LINE_SECONDS:
            self.last_progress = self.clock()
            self._write(log_line(activity))

    def tick(self, activity: Activity) -> None:
        """Name a phase that lasts, once; say what is done after a long silence."""
        if activity.phase and activity.seconds_here >= PHASE_SECONDS and self.named != activity.phase:
            self.named = activity.phase
            self._write(log_line(activity))
        elif self.clock() - self.last_line >= WAITING_SECONDS:
            self._write(waiting_line(activity))

    def end(self) -> None:
        """The next stage's first progress is due."""
        self.last_progress, self.named = -math.inf, ""

    def _write(self, line: str) -> None:
        self.last_line = self.clock()
        print(line, file=self.stream, flush=True)


class QuietView:
    """Only what must be read: warnings, errors and the files made."""

    tick_seconds, wants_interim = 3600.0, False

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def tell(self, event: str, facts: Mapping[str, Any], lines: Sequence[str]) -> None:
        """Write the lines of a message, an error or a file."""
        if event in ("message", "error", "file"):
            print(*lines, sep="\n", file=self.stream, flush=True)

    def show(self, activity: Activity, *, due: bool) -> None:
        """Nothing."""

    def tick(self, activity: Activity) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class EventView:
    """Events as mappings of JSON values (docs/formats.md)."""

    tick_seconds, wants_interim = 3600.0, True

    def __init__(self, emit: Callable[[Mapping[str, Any]], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.emit, self.clock, self.started = emit, clock, clock()
        self.last_progress = -math.inf

    def tell(self, event: str, facts: Mapping[str, Any], lines: Sequence[str]) -> None:
        """Write the facts."""
        self._write(event, facts)

    def show(self, activity: Activity, *, due: bool) -> None:
        """A phase at once, progress at a limited rate."""
        if activity.phase:
            self._write("phase", {"stage": activity.stage, "text": activity.phase})
        elif due or activity.done >= activity.total or self.clock() - self.last_progress >= EVENT_SECONDS:
            self.last_progress = self.clock()
            self._write("progress", progress_facts(activity))

    def tick(self, activity: Activity) -> None:
        """Nothing."""

    def end(self) -> None:
        """The next stage's first progress is due."""
        self.last_progress = -math.inf

    def _write(self, event: str, facts: Mapping[str, Any]) -> None:
        self.emit({"event": event, "seconds": round(self.clock() - self.started, 3), **facts})


def json_lines(stream: TextIO) -> Callable[[Mapping[str, Any]], None]:
    """Writes each event as a JSON object on a line of its own, in ASCII."""
    return lambda event: print(json.dumps(event), file=stream, flush=True)


def progress_facts(activity: Activity) -> dict[str, Any]:
    """Stage, done, total, note, figures and the seconds left, for programs."""
    left = activity.seconds_left
    facts = {"stage": activity.stage, "done": activity.done, "total": activity.total, "note": activity.note}
    return {**facts, **activity.figures, "seconds_left": None if left is None else round(left, 1)}
