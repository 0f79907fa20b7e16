"""How processes of our own begin, and what they are told by environment variables. Light: standard library only."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker


def init_worker(parent: int) -> None:
    """First act of each process that works for another: leave Ctrl-C to it, and do not outlive it.

    Args:
        parent: number of the process worked for.
    """
    # A terminal sends Ctrl-C to every process; the parent alone decides, and lets begun work finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.name == "posix":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        # Elsewhere a process keeps its parent's number after the parent is gone.
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Within, processes begin deaf to Ctrl-C, which cannot end one before it has settled in; ours hears it."""
    if os.name != "posix":
        yield
        return
    resource_tracker.ensure_running()  # Python's own process beside them, whose start unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(parent: int) -> None:
    """End this process with its parent: one that was killed cannot say so, and idle workers hold memory."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


@contextmanager
def temporary_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Within, environment variables have these values: for libraries that read them whenever they are called."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
