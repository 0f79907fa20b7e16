"""Locks that runs wait for: one writer per run, one encoding per autoencoder, no removal while a run begins.

A run that has to wait says which process holds the lock and since when. Ctrl-C ends the wait.
Light: standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from cache.fingerprint import fingerprint
from cache.store import Store
from pipeline.plan.stage_run import StageRun
from pipeline.waited_lock import waited_lock

MAINTENANCE = ("upkeep", fingerprint("upkeep", {}))
"""The lock held by gc, evict and `verify --repair` while they look and remove."""


@contextmanager
def run_lock(store: Store, run: StageRun, say: Callable[[str], None], stop: Callable[[], bool]) -> Iterator[None]:
    """Holds the locks of a stage's run.

    Two encodings with the same autoencoder take turns, so that clips they have in common are encoded once.

    Raises:
        Stopped: `stop` returned True during the wait.
    """
    with ExitStack() as locks:
        locks.enter_context(waited_lock(store, run.stage.name, str(run.identity), "making the same result", say, stop))
        if run.stage.name == "encode":
            shared = fingerprint("encoding", {"autoencoder": run.components["autoencoder"]})
            locks.enter_context(waited_lock(store, "encode", shared, "encoding with the same autoencoder", say, stop))
        yield


@contextmanager
def maintenance_lock(
    store: Store, say: Callable[[str], None], stop: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Holds the lock under which files are removed.

    A run that begins records what it needs while holding it. So maintenance either sees that record, or has finished
    before the run looks at the store.
    """
    with waited_lock(store, *MAINTENANCE, "starting a run or cleaning up this store", say, stop):
        yield
