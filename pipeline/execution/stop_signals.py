"""Turns Ctrl-C, SIGTERM and SIGHUP into a flag that stages check between pieces of work.

Light: standard library only.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.streams import write_now
from stages.errors import Stopped

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Ctrl-C, a polite kill, and a terminal that is closed (Windows has no SIGHUP)."""


class StopFlag:
    """Set by the first stop signal; a second one raises KeyboardInterrupt, with its number."""

    def __init__(self, asked: Callable[[], bool] = lambda: False) -> None:
        self.asked = asked
        self.number: int | None = None
        """The signal that asked to stop."""

    def is_set(self) -> bool:
        """Whether the run should stop at the next safe point."""
        return self.number is not None or self.asked()

    def handle(self, number: int, frame: object) -> None:
        """The signal handler. Stopping at once is safe too: an artifact without a receipt does not count."""
        if self.number is not None:
            raise KeyboardInterrupt(number)
        self.number = number
        write_now("\nstopping at the next safe point; press Ctrl-C again to stop at once")


@contextmanager
def stop_signals(asked: Callable[[], bool] = lambda: False) -> Iterator[StopFlag]:
    """A flag that stop signals set while the block runs; what was inherited as ignored (`nohup`) stays ignored.

    Only the main thread may handle signals: in any other the flag is set by `asked` alone.

    A `Stopped` that the block raises learns which signal it was.
    """
    flag = StopFlag(asked)
    is_main = threading.current_thread() is threading.main_thread()
    heeded = [number for number in STOP_SIGNALS if is_main and signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, flag.handle) for number in heeded}
    try:
        yield flag
    except Stopped as error:
        error.signal_number = flag.number
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
