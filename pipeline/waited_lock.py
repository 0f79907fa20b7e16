"""A lock of the store that is waited for, with a line about who holds it. Light: standard library only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from cache.errors import LockHeld
from cache.store import Store
from stages.errors import Stopped

POLL_SECONDS = 0.25


@contextmanager
def waited_lock(
    store: Store,
    stage: str,
    identity: str,
    activity: str,
    say: Callable[[str], None],
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Waits for a lock and holds it; each new holder is reported once.

    Args:
        activity: what a process that holds this lock is doing.

    Raises:
        Stopped: `stop` returned True during the wait.
    """
    with ExitStack() as locks:
        reported = ""
        while True:
            try:
                locks.enter_context(store.lock(stage, identity))
                break
            except LockHeld as error:
                if error.holder != reported:
                    say(f"waiting for {error.holder}, which is {activity}; Ctrl-C ends the wait")
                    reported = error.holder
            if stop():
                raise Stopped(f"while waiting for {reported}")
            time.sleep(POLL_SECONDS)
        yield
