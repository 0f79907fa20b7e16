"""Steps per second of a running training, for its progress line. Light: standard library only."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

RECENT = 50
"""Looks at the clock that count: on the CPU one after every step, elsewhere one for every progress line."""


class StepRate:
    """Measured over recent steps, without the first of this process and without time spent in preparing steps.

    The first step waits for clips, and loads and compiles what the others find there.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._looks: deque[tuple[int, float]] = deque(maxlen=RECENT + 1)
        """Steps made, and seconds of the clock less those of preparation."""

    def look(self, step: int, preparation_seconds: float) -> None:
        """Note the time after a step.

        Args:
            step: how many are made, which the device must have finished.
            preparation_seconds: spent by this process in compiling and recording steps.
        """
        self._looks.append((step, self.clock() - preparation_seconds))

    @property
    def steps_per_second(self) -> float | None:
        """None before a step after the first has been measured."""
        if len(self._looks) < 2:
            return None
        (first, started), (last, ended) = self._looks[0], self._looks[-1]
        return (last - first) / max(ended - started, 1e-9)

    def words(self, steps_left: int) -> tuple[str, ...]:
        """Such as `9.04 steps/s` and `0:00:38 left`; nothing before they are known."""
        rate = self.steps_per_second
        if rate is None:
            return ()
        seconds = round(steps_left / rate)
        return f"{rate:.2f} steps/s", f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
