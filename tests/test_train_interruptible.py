"""A long call says that it is at work, and ends when asked to, whatever it waits for."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace

import pytest

from stages.errors import Stopped
from stages.train.cuda_graph import interruptible as module
from stages.train.cuda_graph.interruptible import Interrupted, interruptible
from stages.train.cuda_graph.stepper import Stepper
from tests.small_training import Bench

LONG = 30.0
"""Seconds that none of these tests may take."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(module, "SAY_SECONDS", 0.1)


def never() -> bool:
    return False


def after(seconds: float):
    """A request to stop that comes so much later."""
    start = time.perf_counter()
    return lambda: time.perf_counter() - start > seconds


def wait_for_a_lock() -> None:
    threading.Event().wait(LONG)


def swallow_every_exception() -> None:
    try:
        time.sleep(LONG)
    except Exception:
        pytest.fail("a compiler that wraps what went wrong inside it has caught the interruption")


def compute() -> None:
    until = time.perf_counter() + LONG
    while time.perf_counter() < until:
        sum(range(1000))


@pytest.mark.parametrize("work", [wait_for_a_lock, swallow_every_exception, compute])
def test_a_long_call_ends_when_asked_to_stop(work):
    started = time.perf_counter()
    with pytest.raises(Interrupted), interruptible("compiling", lambda line: None, after(0.1)):
        work()
    assert time.perf_counter() - started < LONG / 3


def test_a_line_every_so_often_says_that_it_is_still_at_work():
    said: list[str] = []
    with interruptible("compiling", said.append, never):
        time.sleep(0.45)
    assert 2 <= len(said) <= 4
    assert all(line.startswith("compiling: ") and "s so far" in line for line in said)


def test_a_short_call_says_nothing_and_leaves_the_signal_to_whom_it_was():
    said: list[str] = []
    before = signal.getsignal(module.SIGNAL)
    with interruptible("compiling", said.append, never):
        assert signal.getsignal(module.SIGNAL) != before
    assert said == [] and signal.getsignal(module.SIGNAL) == before
    assert not any(thread.name == "watch" for thread in threading.enumerate())


def test_a_request_that_no_signal_can_bring_takes_effect_when_the_call_is_done():
    raised: list[str] = []

    def elsewhere() -> None:
        try:
            with interruptible("compiling", lambda line: None, lambda: True):
                time.sleep(0.05)
        except Interrupted:
            raised.append("yes")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert raised == ["yes"]


class Preparing:
    """A fast path that makes some steps the plain way, and then compiles for longer than anybody waits."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper

    def advance(self, batch) -> bool:
        training = self.stepper.training
        if training.step == 3:
            with interruptible("compiling", self.stepper.say, self.stepper.should_stop):
                time.sleep(LONG)
        training.advance(batch)
        return True


def test_a_training_asked_to_stop_while_it_compiles_saves_its_steps_and_goes_on_from_there(tmp_path, monkeypatch):
    whole, bench = (Bench.of_latents(tmp_path).at(name) for name in ("whole", "run"))
    whole.train(number_of_steps=5)
    began = time.perf_counter()
    stop_after = replace(bench.workspace(), should_stop=lambda: any("so far" in line for line in bench.said))
    with monkeypatch.context() as patched:
        patched.setattr(bench, "workspace", lambda *options: stop_after, raising=False)
        patched.setattr(Stepper, "__enter__", lambda self: setattr(self, "fast", Preparing(self)) or self)
        patched.setattr(Stepper, "__exit__", lambda self, *exception: None)
        with pytest.raises(Stopped, match="at step 3 of 5"):
            bench.train(number_of_steps=5)
    assert time.perf_counter() - began < LONG

    bench.said.clear()
    bench.train(number_of_steps=5)

    assert "resuming from step 3" in bench.said
    assert bench.results() == whole.results()
