"""Time left of a job, estimated from the bytes done so far. Light: standard library only."""

from __future__ import annotations

import time
from collections.abc import Callable

_FIRST_ESTIMATE_SECONDS = 2.0
"""Before that there is too little to go by: workers are still starting."""


class TimeLeft:
    """Estimates the time left from the share of bytes that are done; its clock starts when it is made."""

    def __init__(self, total_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._done, self._clock = total_bytes, 0, clock
        self._begun = clock()

    def note(self, name: str, num_bytes: int) -> str:
        """Progress note after another file is done: its name and the time left."""
        self._done += num_bytes
        elapsed = self._clock() - self._begun
        if elapsed < _FIRST_ESTIMATE_SECONDS or self._done >= self._total:
            return name
        return f"{name}, {_duration(elapsed / self._done * (self._total - self._done))} left"


def _duration(seconds: float) -> str:
    """`12 s`, `34 min` or `1.6 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
