"""A long call that cannot be divided, such as a compilation: it says that it is still at work, and ends when asked to.

The flag that a stop request sets is looked at by another thread, which then interrupts the call by a signal: what it
waits for (another process that compiles, say) ends with it.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

LOOK_SECONDS = 0.2
SAY_SECONDS = 5.0
LONG_SECONDS = 60.0
"""After which a line also says how to do without."""
SIGNAL = getattr(signal, "SIGUSR1", None)
"""None where the system has no spare signal: there the call ends first."""


class Interrupted(BaseException):
    """Asked to stop in the midst of a long call. No Exception, lest the called wrap or swallow it."""


@dataclass(kw_only=True)
class _Watch:
    what: str
    say: Callable[[str], None]
    should_stop: Callable[[], bool]
    otherwise: str
    interrupts: bool
    """Whether the call runs where a signal reaches it."""
    over: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        """Until it is over."""
        started = told = time.perf_counter()
        while not self.over.wait(LOOK_SECONDS):
            now = time.perf_counter()
            if self.interrupts and SIGNAL is not None and self.should_stop():
                signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
            if now - told >= SAY_SECONDS:
                way_out = "" if now - started < LONG_SECONDS else f", {self.otherwise}"
                self.say(f"{self.what}: {now - started:.0f} s so far; Ctrl-C stops it{way_out}")
                told = now

    def interrupt(self, number: int, frame: object) -> None:
        """Where the signal arrives; one that comes late is for nobody."""
        if not self.over.is_set():
            raise Interrupted


@contextmanager
def interruptible(
    what: str, say: Callable[[str], None], should_stop: Callable[[], bool], otherwise: str = "or wait"
) -> Iterator[None]:
    """Within, a line every few seconds, and a stop request takes effect at once.

    Args:
        otherwise: how to do without, said when it takes long.

    Raises:
        Interrupted: asked to stop. Outside the main thread, where no signal arrives, only when the block is done.
    """
    interrupts = SIGNAL is not None and threading.current_thread() is threading.main_thread()
    watch = _Watch(what=what, say=say, should_stop=should_stop, otherwise=otherwise, interrupts=interrupts)
    before = signal.signal(SIGNAL, watch.interrupt) if SIGNAL is not None and interrupts else None
    looking = threading.Thread(target=watch.look, name="watch", daemon=True)
    looking.start()
    try:
        yield
    finally:
        watch.over.set()
        looking.join()
        if SIGNAL is not None and interrupts:
            signal.signal(SIGNAL, signal.SIG_DFL if before is None else before)
    if should_stop():
        raise Interrupted
