"""Turns Ctrl-C, SIGTERM and SIGHUP into a flag that stages check between pieces of work.

Light: standard library only.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.streams import write_now
from stages.errors import Stopped

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Ctrl-C, a polite kill, and a terminal that is closed (Windows has no SIGHUP)."""


class StopFlag:
    """Set by the first stop signal; a second one raises KeyboardInterrupt, with its number."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that asked to stop."""

    def is_set(self) -> bool:
        """Whether the run should stop at the next safe point."""
        return self.number is not None

    def handle(self, number: int, frame: object) -> None:
        """The signal handler. Stopping at once is safe too: an artifact without a receipt does not count."""
        if self.is_set():
            raise KeyboardInterrupt(number)
        self.number = number
        write_now("\nstopping at the next safe point; press Ctrl-C again to stop at once")


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """A flag that stop signals set while the block runs; what was inherited as ignored (`nohup`) stays ignored.

    A `Stopped` that the block raises learns which signal it was.
    """
    flag = StopFlag()
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, flag.handle) for number in heeded}
    try:
        yield flag
    except Stopped as error:
        error.signal_number = flag.number
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
