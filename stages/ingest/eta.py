"""How long the rest will take, going by bytes. Light: standard library only."""

from __future__ import annotations

import time
from collections.abc import Callable

_FIRST_WORD_SECONDS = 2.0
"""Before that there is too little to go by: workers are still starting."""


class Pace:
    """Begun when work begins; asked after each piece of it."""

    def __init__(self, total_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._done, self._clock = total_bytes, 0, clock
        self._begun = clock()

    def note(self, name: str, num_bytes: int) -> str:
        """What was just done, and the time that is left."""
        self._done += num_bytes
        taken = self._clock() - self._begun
        if taken < _FIRST_WORD_SECONDS or self._done >= self._total:
            return name
        left = taken / self._done * (self._total - self._done)
        return f"{name}, {_in_words(left)} left"


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
