"""A thread that calls a function again and again until it is stopped. Light: standard library only."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Ticker:
    """Calls `tick` every so many seconds in a thread of its own, which ends with the process."""

    def __init__(self, tick: Callable[[], None], seconds: float) -> None:
        self.tick, self.seconds = tick, seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def start(self) -> None:
        """Begin; a process that may start no further thread does without."""
        try:
            self._thread.start()
        except RuntimeError:
            self._stopped.set()

    def stop(self) -> None:
        """No further tick begins, and none is under way when this returns."""
        self._stopped.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._stopped.wait(self.seconds):
            self.tick()
