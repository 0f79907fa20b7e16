"""What a stage is doing now: phase, progress, figures, and the time left. Light: standard library only."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

FIRST_ESTIMATE_SECONDS = 2.0
"""Before that there is too little to go by: workers are still starting."""
TREND_SECONDS = 60.0
"""The loss is compared with what it was at most so long ago."""
LEVEL = 0.01
"""A relative change of the loss below this is none."""


@dataclass(kw_only=True)
class Activity:
    """The state of one stage, as it was last reported. Its clock starts when it is made."""

    stage: str
    clock: Callable[[], float] = time.monotonic
    phase: str = ""
    """What is done now; empty while clips or steps are counted."""
    done: int = 0
    total: int = 0
    """0 before anything is counted."""
    note: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    """As `stages.contract.Progress` names them."""
    _first: tuple[float, float] | None = None
    """When counting began, and the share that was done then."""
    _losses: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=1000))

    def __post_init__(self) -> None:
        self.since = self.clock()

    def begin_phase(self, phase: str) -> None:
        """Something else is done now."""
        self.phase, self.since = phase, self.clock()

    def advance(self, done: int, total: int, note: str, figures: Mapping[str, float]) -> None:
        """So much is done, and so much measured."""
        self.phase, self.done, self.total, self.note, self.figures = "", done, total, note, figures
        now = self.clock()
        self.since = now
        self._first = self._first or (now, self.share)
        if (loss := figures.get("loss")) is not None:
            self._losses.append((now, loss))
            while now - self._losses[0][0] > TREND_SECONDS and len(self._losses) > 2:
                self._losses.popleft()

    @property
    def share(self) -> float:
        """What part of the work is done, 0 to 1: by bytes where they are known."""
        done, total = self.figures.get("bytes_done", 0), self.figures.get("bytes_total", 0)
        return done / total if total else self.done / self.total if self.total else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time left; None before it can be told, and at the end."""
        if not self.total or self.done >= self.total:
            return None
        if rate := self.figures.get("steps_per_second"):
            return (self.total - self.done) / rate
        if self._first is None:
            return None
        began, share = self._first
        elapsed, made = self.clock() - began, self.share - share
        if elapsed < FIRST_ESTIMATE_SECONDS or made <= 0:
            return None
        return elapsed / made * (1 - self.share)

    @property
    def bytes_per_second(self) -> float | None:
        """Bytes read per second since counting began."""
        if self._first is None or not (total := self.figures.get("bytes_total")):
            return None
        elapsed = self.clock() - self._first[0]
        return (self.share - self._first[1]) * total / elapsed if elapsed >= FIRST_ESTIMATE_SECONDS else None

    @property
    def trend(self) -> str:
        """`falling`, `level` or `rising`: the recent losses against those before them; empty before there are some."""
        losses = [loss for _, loss in self._losses]
        if len(losses) < 6:
            return ""
        part = len(losses) // 3
        before, after = sum(losses[:part]) / part, sum(losses[-part:]) / part
        if abs(after - before) < LEVEL * abs(before):
            return "level"
        return "falling" if after < before else "rising"

    @property
    def seconds_here(self) -> float:
        """Since the phase or the last progress was reported."""
        return self.clock() - self.since
