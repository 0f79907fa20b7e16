"""The estimate of the time left."""

from __future__ import annotations

import pytest

from stages.ingest.eta import TimeLeft


def at(*times: float):
    clock = iter(times)
    return lambda: next(clock)


def test_no_time_is_estimated_in_the_first_seconds():
    assert TimeLeft(100, at(0, 1.9)).note("a.wav", 10) == "a.wav"


@pytest.mark.parametrize(
    ("taken", "done", "words"), [(10, 50, "10 s left"), (100, 25, "5 min left"), (3600, 20, "4.0 h left")]
)
def test_the_time_left_is_proportional_to_the_bytes_left(taken, done, words):
    assert TimeLeft(100, at(0, taken)).note("a.wav", done) == f"a.wav, {words}"


def test_at_the_end_no_time_is_left():
    assert TimeLeft(100, at(0, 10)).note("a.wav", 100) == "a.wav"
