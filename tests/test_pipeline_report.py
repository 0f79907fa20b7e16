"""What is shown while a stage works, in a log and on a terminal."""

from __future__ import annotations

import io

from pipeline.report import Report


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(stage: str, stream: io.StringIO) -> io.StringIO:
    progress = Report(stream=stream).progress_of(stage)
    for step in (1, 8, 16, 24):
        progress(step, 24, "loss")
    return stream


def test_a_log_gets_every_line_of_a_training_however_fast_its_steps_are():
    lines = told("train", io.StringIO()).getvalue().splitlines()
    assert lines == [f"train   {step}/24  loss" for step in (1, 8, 16, 24)]


def test_a_log_gets_the_first_and_the_last_line_of_a_stage_that_is_over_at_once():
    lines = told("ingest", io.StringIO()).getvalue().splitlines()
    assert lines == ["ingest  1/24  loss", "ingest  24/24  loss"]


def test_a_terminal_redraws_one_line_and_seldom():
    assert told("train", Terminal()).getvalue().count("\r") == 2
