"""Signals and lifetime of worker processes; temporary environment variables. Light: standard library only."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker


def init_worker(parent_pid: int) -> None:
    """Initializer of a worker process: ignores Ctrl-C, and exits when the parent process is gone."""
    # A terminal sends Ctrl-C to every process; only the parent reacts, and lets started work finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.name == "posix":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        # On other systems getppid does not change when the parent is gone.
        threading.Thread(target=_exit_with_parent, args=(parent_pid,), daemon=True).start()


def can_start_workers() -> bool:
    """Whether joblib can start worker processes: their semaphores need shared memory that can be written.

    Some containers have none, or mount /dev/shm read-only.
    """
    try:
        multiprocessing.Semaphore()
    except (OSError, ImportError):
        return False
    return True


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Starts child processes with SIGINT blocked, so that Ctrl-C cannot end one before `init_worker` has run."""
    if os.name != "posix":
        yield
        return
    resource_tracker.ensure_running()  # starting this helper process of Python would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exit_with_parent(parent_pid: int) -> None:
    """Ends this process when its parent is gone: a killed parent cannot stop its workers, and they hold memory."""
    while os.getppid() == parent_pid:
        time.sleep(0.5)
    os._exit(1)


@contextmanager
def temporary_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables during the block, for libraries that read them at every call."""
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
