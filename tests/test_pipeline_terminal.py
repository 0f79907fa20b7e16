"""What is shown while a stage works: a line that is redrawn on a terminal, lines of a log, and JSON events."""

from __future__ import annotations

import io
import json

import pytest

from pipeline.report import Report
from pipeline.streams import DrawnLine, ForgivingFile, forgiving
from pipeline.terminal.activity import Activity
from pipeline.terminal.live_view import LiveView
from pipeline.terminal.views import EventView, LogView, json_lines
from pipeline.terminal.words import fitted_parts, log_line, width_of
from stages.plural import duration


class Clock:
    """A clock that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class RawTerminal(io.RawIOBase):
    """A terminal that remembers what was written to it."""

    def __init__(self) -> None:
        self.written = b""

    def isatty(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        self.written += bytes(content)  # type: ignore[call-overload]
        return len(content)  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def terminal(monkeypatch):
    """A terminal, and the stream of a program that writes to it."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "JPY_PARENT_PID", "COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    raw = RawTerminal()
    return raw, forgiving(io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8"), DrawnLine())


def training(clock: Clock, **figures: float) -> Activity:
    found = Activity(stage="train", clock=clock)
    found.advance(250, 1000, "", {"loss": 1.1778, "learning_rate": 1e-4, "steps_per_second": 20.0, **figures})
    return found


def texts(activity: Activity, width: int) -> str:
    return "|".join(part.text.strip() for part in fitted_parts(activity, width, unicode=True))


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (120, "train||250/1,000|loss 1.1778|20.00 steps/s|4.2 GB|38 s left"),
        (66, "train||250/1,000|loss 1.1778|20.00 steps/s|38 s left"),
        (50, "train||250/1,000|loss 1.1778|38 s left"),
        (40, "train|250/1,000|loss 1.1778|38 s left"),
        (30, "train|250/1,000|loss 1.1778"),
        (5, "train|250/1,000"),
    ],
)
def test_a_narrow_terminal_leaves_out_what_is_wanted_least(clock, width, shown):
    assert texts(training(clock, memory_bytes=4.2e9), width) == shown


@pytest.mark.parametrize("width", range(16, 120, 7))
def test_the_line_is_never_wider_than_the_terminal(clock, width):
    assert width_of(fitted_parts(training(clock, memory_bytes=4.2e9), width, unicode=True)) <= width


def test_a_phase_that_lasts_shows_for_how_long(clock):
    activity = Activity(stage="encode", clock=clock)
    activity.begin_phase("loading the autoencoder")
    assert texts(activity, 80) == "encode|loading the autoencoder ..."
    clock.now += 75
    assert texts(activity, 80) == "encode|loading the autoencoder ...|1 min 15 s"


@pytest.mark.parametrize(
    ("seconds", "words"), [(8.4, "8 s"), (200, "3 min 20 s"), (3599, "59 min 59 s"), (3900, "1 h 05 min")]
)
def test_durations_have_one_notation(seconds, words):
    assert duration(seconds) == words


def test_no_time_is_estimated_in_the_first_seconds_nor_at_the_end(clock):
    activity = Activity(stage="ingest", clock=clock)
    activity.advance(0, 4, "", {"bytes_done": 0, "bytes_total": 100})
    clock.now += 1.9
    activity.advance(1, 4, "", {"bytes_done": 10, "bytes_total": 100})
    assert activity.seconds_left is None
    activity.advance(4, 4, "", {"bytes_done": 100, "bytes_total": 100})
    assert activity.seconds_left is None


def test_the_time_left_follows_from_the_bytes_read_since_counting_began(clock):
    activity = Activity(stage="ingest", clock=clock)
    activity.advance(2, 4, "", {"bytes_done": 50, "bytes_total": 100})
    clock.now += 10
    activity.advance(3, 4, "", {"bytes_done": 75, "bytes_total": 100})
    assert activity.seconds_left == pytest.approx(10)
    assert activity.bytes_per_second == pytest.approx(2.5)


@pytest.mark.parametrize(("last", "trend"), [(1.0, "falling"), (3.0, "rising"), (2.0, "level")])
def test_the_trend_of_the_loss_compares_recent_values_with_earlier_ones(clock, last, trend):
    activity = Activity(stage="train", clock=clock)
    for loss in [2.0] * 6 + [last] * 6:
        activity.advance(1, 100, "", {"loss": loss})
    assert activity.trend == trend


def test_a_line_of_a_log_has_every_figure(clock):
    words = "train   250/1,000  loss 1.1778  lr 0.0001  4.2 GB  20.00 steps/s  38 s left"
    assert log_line(training(clock, memory_bytes=4.2e9)) == words


def test_a_download_counts_bytes_once(clock):
    activity = Activity(stage="fetch", clock=clock)
    activity.advance(5_000_000, 20_000_000, "", {"bytes_done": 5_000_000, "bytes_total": 20_000_000})
    assert log_line(activity) == "fetch   5.0/20.0 MB"


def test_a_log_names_a_long_phase_once_and_speaks_again_after_a_minute(clock):
    stream = io.StringIO()
    view, activity = LogView(stream, clock), Activity(stage="train", clock=clock)
    activity.begin_phase("loading medium-base")
    for _ in range(65):
        clock.now += 1
        view.tick(activity)
    assert stream.getvalue().splitlines() == [
        "train   loading medium-base ...",
        "train   loading medium-base ...  (for 1 min 03 s)",
    ]


def test_a_short_phase_leaves_no_line_in_a_log(clock):
    stream = io.StringIO()
    view, activity = LogView(stream, clock), Activity(stage="train", clock=clock)
    activity.begin_phase("loading tiny-base")
    clock.now += 1
    view.tick(activity)
    assert stream.getvalue() == ""


def test_a_message_is_never_glued_to_the_line_that_is_redrawn(terminal, clock):
    raw, stream = terminal
    view = LiveView(stream, stream.buffer.raw, clock)
    clock.now += 1
    view.tick(training(clock))
    raw.written = b""
    print("error: the disk is full", file=stream, flush=True)
    assert raw.written == b"\r\x1b[Kerror: the disk is full\n"


def test_the_line_is_drawn_below_a_message_that_did_not_end_its_line(terminal, clock):
    raw, stream = terminal
    stream.write("a library's progress")
    stream.flush()
    raw.written = b""
    stream.buffer.raw.draw(b"train")
    assert raw.written == b"\ntrain\x1b[K"


def test_another_stream_on_the_same_terminal_erases_the_line_too(terminal):
    raw, _ = terminal
    drawn = DrawnLine()
    errors, output = ForgivingFile(raw, drawn), ForgivingFile(raw, drawn)
    errors.draw(b"train")
    output.write(b"{}\n")
    assert raw.written == b"\rtrain\x1b[K\r\x1b[K{}\n"


def test_a_command_that_is_done_at_once_draws_nothing(terminal, clock):
    raw, stream = terminal
    view = LiveView(stream, stream.buffer.raw, clock)
    view.tick(training(clock))
    assert raw.written == b""


@pytest.mark.parametrize(("encoding", "bar"), [("utf-8", "━"), ("ascii", "#"), ("latin-1", "#")])
def test_the_bar_is_drawn_in_letters_that_the_terminal_has(monkeypatch, clock, encoding, bar):
    monkeypatch.setenv("TERM", "xterm")
    raw = RawTerminal()
    stream = forgiving(io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding), DrawnLine())
    view = LiveView(stream, stream.buffer.raw, clock)
    clock.now += 1
    view.tick(training(clock))
    assert bar in raw.written.decode(encoding) and b"\\u" not in raw.written


def test_no_color_leaves_the_line_without_colours(terminal, clock, monkeypatch):
    raw, stream = terminal
    monkeypatch.setenv("NO_COLOR", "1")
    view = LiveView(stream, stream.buffer.raw, clock)
    clock.now += 1
    view.tick(training(clock))
    assert b"\x1b[32m" not in raw.written and "━".encode() in raw.written


@pytest.mark.parametrize(("term", "kind"), [("xterm", LiveView), ("dumb", LogView), ("unknown", LogView)])
def test_a_terminal_that_cannot_redraw_a_line_gets_lines(terminal, monkeypatch, term, kind):
    monkeypatch.setenv("TERM", term)
    assert type(Report(stream=terminal[1])._view) is kind


@pytest.mark.parametrize("name", ["JPY_PARENT_PID", "COLAB_RELEASE_TAG"])
def test_a_notebook_gets_lines_unless_the_other_is_asked_for(terminal, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert type(Report(stream=terminal[1])._view) is LogView
    assert type(Report(stream=terminal[1], style="live")._view) is LiveView


def test_a_stream_that_another_program_put_in_place_gets_lines():
    assert type(Report(stream=io.StringIO())._view) is LogView


def test_quiet_leaves_messages_and_files(tmp_path):
    stream = io.StringIO()
    report = Report(stream=stream, style="quiet")
    report.phase_of("ingest")("reading the captions")
    report.progress_of("ingest")(1, 1, "a.wav")
    report.say("warning: a.wav is short")
    (tmp_path / "a.json").write_text("{}")
    report.made(tmp_path / "a.json")
    report.end_progress()
    assert stream.getvalue().splitlines() == ["warning: a.wav is short", f"{tmp_path / 'a.json'}  2 B"]


def test_verbose_writes_every_clip_and_the_time_of_every_phase():
    stream = io.StringIO()
    report = Report(stream=stream, verbose=True)
    report.phase_of("ingest")("reading the captions")
    for number in (1, 2, 3):
        report.progress_of("ingest")(number, 3, f"{number}.wav")
    report.end_progress()
    assert stream.getvalue().splitlines() == [
        "ingest  reading the captions: 0.0 s",
        *[f"ingest  {number}/3  {number}.wav" for number in (1, 2, 3)],
    ]


def test_events_are_one_json_object_a_line(clock):
    stream = io.StringIO()
    view, activity = EventView(json_lines(stream), clock), Activity(stage="ingest", clock=clock)
    activity.begin_phase("reading the captions")
    view.show(activity, due=False)
    clock.now += 2.5
    activity.advance(1, 3, "ä.wav", {"bytes_done": 10, "bytes_total": 30})
    view.show(activity, due=False)
    assert stream.getvalue().isascii()
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {"event": "phase", "seconds": 0.0, "stage": "ingest", "text": "reading the captions"},
        {
            **{"event": "progress", "seconds": 2.5, "stage": "ingest", "done": 1, "total": 3, "note": "ä.wav"},
            **{"bytes_done": 10, "bytes_total": 30, "seconds_left": None},
        },
    ]


def test_events_of_progress_come_at_a_limited_rate_and_the_last_one_always(clock):
    stream = io.StringIO()
    view, activity = EventView(json_lines(stream), clock), Activity(stage="train", clock=clock)
    for step in range(1, 101):
        clock.now += 0.1
        activity.advance(step, 100, "", {})
        view.show(activity, due=False)
    steps = [json.loads(line)["done"] for line in stream.getvalue().splitlines()]
    assert 18 < len(steps) < 22 and steps[-1] == 100


def test_an_error_ends_the_line_that_is_redrawn(terminal):
    report = Report(stream=terminal[1])
    report.progress_of("ingest")(1, 2)
    report.end_progress()
    assert report._ticker is None and report._activity is None
