"""A long call reports that it is running, and ends when asked to, whatever it waits for."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from stages.errors import Stopped
from stages.train.cuda_graph import interruptible as module
from stages.train.cuda_graph.interruptible import Interrupted, interruptible
from stages.train.cuda_graph.stepper import Stepper
from tests.small_training import Bench

LONG = 60.0
"""Seconds that a call blocks unless it is interrupted; then the test fails."""


@pytest.fixture(autouse=True)
def polls_often(monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)


def never() -> bool:
    return False


def clock(monkeypatch, seconds_per_look: float) -> None:
    """A clock that moves on by so much whenever it is read."""
    looks = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(looks) * seconds_per_look))


class Lines:
    """Takes printed lines, and lets a test wait for them."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.changed = threading.Condition()

    def say(self, line: str) -> None:
        with self.changed:
            self.said.append(line)
            self.changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.said) >= count, LONG), self.said


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
def test_a_long_call_ends_when_asked_to_stop(work: Callable[[], None]):
    stop = threading.Event()
    with pytest.raises(Interrupted), interruptible("compiling", lambda line: None, stop.is_set):
        stop.set()
        work()
        pytest.fail("the call was not interrupted")


def test_lines_every_five_seconds_say_that_it_is_running_and_later_how_to_do_without(monkeypatch):
    clock(monkeypatch, seconds_per_look=1.0)
    lines = Lines()
    with interruptible("compiling", lines.say, never, "or wait"):
        lines.wait_for(12)
    assert lines.said[:2] == ["compiling: 5 s so far; Ctrl-C stops it", "compiling: 10 s so far; Ctrl-C stops it"]
    assert lines.said[11] == "compiling: 60 s so far; Ctrl-C stops it, or wait"


def test_a_short_call_says_nothing_and_restores_the_handler_of_the_signal(monkeypatch):
    clock(monkeypatch, seconds_per_look=0.0)
    said: list[str] = []
    before = signal.getsignal(module.SIGNAL)
    with interruptible("compiling", said.append, never):
        assert signal.getsignal(module.SIGNAL) != before
    assert said == [] and signal.getsignal(module.SIGNAL) == before
    assert not any(thread.name == "watch" for thread in threading.enumerate())


def test_outside_the_main_thread_a_stop_request_takes_effect_when_the_call_is_done(monkeypatch):
    clock(monkeypatch, seconds_per_look=1.0)
    lines, reached = Lines(), []

    def elsewhere() -> None:
        try:
            with interruptible("compiling", lines.say, lambda: True):
                lines.wait_for(1)  # the watching thread has polled several times by then
                reached.append("end of the call")
        except Interrupted:
            reached.append("interrupted")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert reached == ["end of the call", "interrupted"]


class Preparing:
    """CUDA graphs whose fourth step blocks in compilation; steps before it are made eagerly."""

    def __init__(self, stepper: Stepper, compiling: threading.Event) -> None:
        self.stepper, self.compiling = stepper, compiling

    def advance(self, batch) -> bool:
        training = self.stepper.training
        if training.step == 3:
            with interruptible("compiling", self.stepper.say, self.stepper.should_stop):
                self.compiling.set()
                time.sleep(LONG)
                pytest.fail("the compilation was not interrupted")
        training.advance(batch)
        return True


def test_a_training_asked_to_stop_while_it_compiles_saves_its_steps_and_resumes_from_them(tmp_path, monkeypatch):
    whole, bench = (Bench.of_latents(tmp_path).at(name) for name in ("whole", "run"))
    whole.train(number_of_steps=5)
    compiling = threading.Event()
    workspace = replace(bench.workspace(), should_stop=compiling.is_set)
    with monkeypatch.context() as patched:
        patched.setattr(bench, "workspace", lambda *options: workspace, raising=False)
        patched.setattr(
            Stepper, "__enter__", lambda self: setattr(self, "graph_steps", Preparing(self, compiling)) or self
        )
        patched.setattr(Stepper, "__exit__", lambda self, *exception: None)
        with pytest.raises(Stopped, match="at step 3 of 5"):
            bench.train(number_of_steps=5)

    bench.said.clear()
    bench.train(number_of_steps=5)

    assert "resuming from step 3" in bench.said
    assert bench.results() == whole.results()
