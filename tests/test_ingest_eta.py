"""What is said about the time that is left."""

from __future__ import annotations

import pytest

from stages.ingest.eta import TimeLeft


def at(*times: float):
    clock = iter(times)
    return lambda: next(clock)


def test_nothing_is_said_before_there_is_something_to_go_by():
    assert TimeLeft(100, at(0, 1.9)).note("a.wav", 10) == "a.wav"


@pytest.mark.parametrize(
    ("taken", "done", "words"), [(10, 50, "10 s left"), (100, 25, "5 min left"), (3600, 20, "4.0 h left")]
)
def test_the_rest_takes_as_long_as_its_bytes_did_so_far(taken, done, words):
    assert TimeLeft(100, at(0, taken)).note("a.wav", done) == f"a.wav, {words}"


def test_at_the_end_nothing_is_left():
    assert TimeLeft(100, at(0, 10)).note("a.wav", 100) == "a.wav"
