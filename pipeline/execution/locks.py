"""Waits for a turn: one writer per run, one encoding per autoencoder, nobody while the store is being tidied up.

A run that finds another one at work says who that is and since when, and waits; Ctrl-C ends the waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from cache.errors import LockHeld
from cache.fingerprint import fingerprint
from cache.store import Store
from pipeline.plan.stage_run import StageRun
from stages.errors import Stopped

LOOK_EVERY_SECONDS = 0.25
UPKEEP = ("upkeep", fingerprint("upkeep", {}))
"""Held by gc, evict and `verify --repair` while they look and remove."""


@contextmanager
def turn(store: Store, run: StageRun, say: Callable[[str], None], stop: Callable[[], bool]) -> Iterator[None]:
    """Hold all that a stage's run needs while it works.

    Two encodings with one autoencoder go one after the other: what their datasets share is encoded once.

    Raises:
        Stopped: asked to, while waiting.
    """
    with ExitStack() as held:
        held.enter_context(_waited(store, run.stage.name, str(run.identity), say, stop))
        if run.stage.name == "encode":
            shared = fingerprint("encoding", {"autoencoder": run.components["autoencoder"]})
            held.enter_context(_waited(store, "encode", shared, say, stop))
        yield


@contextmanager
def upkeep(store: Store, say: Callable[[str], None], stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Nobody removes anything while the block lasts: for a run that begins, and for upkeep itself.

    A run notes what it needs inside such a block, so upkeep sees it, or it sees what upkeep left.
    """
    with _waited(store, *UPKEEP, say, stop):
        yield


@contextmanager
def _waited(
    store: Store, stage: str, identity: str, say: Callable[[str], None], stop: Callable[[], bool]
) -> Iterator[None]:
    with ExitStack() as held:
        said = ""
        while True:
            try:
                held.enter_context(store.lock(stage, identity))
                break
            except LockHeld as error:
                if error.holder != said:
                    say(f"waiting for {error.holder}, which is at work on {error.what}; Ctrl-C ends the waiting")
                    said = error.holder
            if stop():
                raise Stopped(f"while waiting for {said}")
            time.sleep(LOOK_EVERY_SECONDS)
        yield
