"""Makes a long call that cannot be divided, such as a compilation, report that it runs and end on a stop request.

A watching thread polls the flag that a stop request sets, and interrupts the main thread by a signal: whatever the call
waits for, such as another process that compiles, the wait ends.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

POLL_SECONDS = 0.2
REPORT_SECONDS = 5.0
"""Time between two lines."""
HINT_SECONDS = 60.0
"""Time after which lines also say how to do without."""
SIGNAL = getattr(signal, "SIGUSR1", None)
"""None where the system has no spare signal: there a stop request takes effect when the call ends."""


class Interrupted(BaseException):
    """A stop request during a long call. Not an Exception, lest the called code wrap or swallow it."""


@dataclass(kw_only=True)
class _Watcher:
    """Polls for a stop request, and prints lines, until `over` is set."""

    activity: str
    say: Callable[[str], None]
    should_stop: Callable[[], bool]
    hint: str
    interrupts: bool
    """Whether the call runs in the main thread, where a signal can interrupt it."""
    over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Body of the watching thread."""
        started = last_line = time.perf_counter()
        while not self.over.wait(POLL_SECONDS):
            now = time.perf_counter()
            if self.interrupts and SIGNAL is not None and self.should_stop():
                signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
            if now - last_line >= REPORT_SECONDS:
                self.say(self.line(now - started))
                last_line = now

    def line(self, seconds: float) -> str:
        """What is printed after so long."""
        hint = "" if seconds < HINT_SECONDS else f", {self.hint}"
        return f"{self.activity}: {seconds:.0f} s so far; Ctrl-C stops it{hint}"

    def interrupt(self, number: int, frame: object) -> None:
        """Signal handler. A signal that arrives after the call is ignored."""
        if not self.over.is_set():
            raise Interrupted


@contextmanager
def interruptible(
    activity: str, say: Callable[[str], None], should_stop: Callable[[], bool], hint: str = "or wait"
) -> Iterator[None]:
    """Context in which a line is printed every few seconds, and a stop request takes effect at once.

    Args:
        activity: what is running, as printed.
        hint: how to do without it, printed when it takes long.

    Raises:
        Interrupted: asked to stop. Outside the main thread, where no signal arrives, only when the block is done.
    """
    interrupts = SIGNAL is not None and threading.current_thread() is threading.main_thread()
    watcher = _Watcher(activity=activity, say=say, should_stop=should_stop, hint=hint, interrupts=interrupts)
    before = signal.signal(SIGNAL, watcher.interrupt) if SIGNAL is not None and interrupts else None
    thread = threading.Thread(target=watcher.watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watcher.over.set()
        thread.join()
        if SIGNAL is not None and interrupts:
            signal.signal(SIGNAL, signal.SIG_DFL if before is None else before)
    if should_stop():
        raise Interrupted
