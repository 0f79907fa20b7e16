"""Counts, sizes and times as people read them."""

from __future__ import annotations

import time

import pytest

from stages.plural import moment, size


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (517_664, "518 kB"),
        (999_600, "1.0 MB"),
        (4_633_373, "4.6 MB"),
        (25_769_803_776, "25.8 GB"),
        (5_000_000_000_000, "5,000.0 GB"),
    ],
)
def test_sizes_are_decimal_as_disks_count(count, words):
    assert size(count) == words


def test_a_time_is_that_of_the_clock_on_the_wall(monkeypatch):
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    try:
        assert moment("2026-11-30T23:18:41+00:00") == "2026-12-01 00:18"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_what_is_no_time_is_shown_as_it_is():
    assert moment("earlier") == "earlier"
