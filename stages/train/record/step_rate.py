"""Steps per second of a running training, for its progress line. Light: standard library only."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW = 50
"""Measurements that are kept: on the CPU one per step, elsewhere one per progress line."""


class StepRate:
    """Steps per second over recent steps, without the first of this process and without preparation time.

    The first step waits for clips, and loads and compiles what later steps use.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._measurements: deque[tuple[int, float]] = deque(maxlen=WINDOW + 1)
        """(steps made, seconds of the clock minus preparation)"""

    def measure(self, step: int, preparation_seconds: float) -> None:
        """Record the time after a step.

        Args:
            step: steps made; the device must have finished them.
            preparation_seconds: spent by this process in compiling and capturing steps.
        """
        self._measurements.append((step, self.clock() - preparation_seconds))

    @property
    def steps_per_second(self) -> float | None:
        """None before a step after the first has been measured."""
        if len(self._measurements) < 2:
            return None
        (first, started), (last, ended) = self._measurements[0], self._measurements[-1]
        return (last - first) / max(ended - started, 1e-9)
