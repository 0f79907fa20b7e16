"""Turns Ctrl-C, SIGTERM and SIGHUP into a flag that stages check between pieces of work.

Light: standard library only.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.streams import write_now

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Ctrl-C, a polite kill, and a terminal that is closed (Windows has no SIGHUP)."""


class StopFlag:
    """Set by the first stop signal; a second one raises KeyboardInterrupt."""

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
        write_now("\nstopping at the next safe point; press Ctrl-C again to stop at once")


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """A flag that stop signals set while the block runs; what was inherited as ignored (`nohup`) stays ignored."""
    flag = StopFlag()
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, flag.handle) for number in heeded}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
