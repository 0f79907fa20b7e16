"""Turns Ctrl-C and SIGTERM into a flag that stages check between pieces of work. Light: standard library only."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class StopFlag:
    """Set by the first Ctrl-C or SIGTERM; a second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        """Whether the run should stop at the next safe point."""
        return self._set

    def handle(self, number: int, frame: object) -> None:
        """The signal handler. Stopping at once is safe too: an artifact without a receipt does not count."""
        if self._set:
            raise KeyboardInterrupt
        self._set = True
        print("\nstopping at the next safe point; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """A flag that Ctrl-C and SIGTERM set while the block runs."""
    flag = StopFlag()
    before = {number: signal.signal(number, flag.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
