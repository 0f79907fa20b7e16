"""What the commands print for people and programs: plan, progress, results of stages. Light: no arrays."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from cache.receipt import Receipt
from pipeline.plan.plan import Plan, StageRun
from pipeline.streams import raw_file
from pipeline.terminal.activity import Activity
from pipeline.terminal.live_view import LiveView
from pipeline.terminal.ticker import Ticker
from pipeline.terminal.views import EventView, LogView, QuietView, View, json_lines
from pipeline.terminal.words import log_line
from stages.plural import duration, pluralized
from stages.plural import size as in_words

STYLES = ("auto", "live", "log", "json", "quiet")
"""auto: live on a terminal that can redraw a line, else log."""


_NOTEBOOKS = ("JPY_PARENT_PID", "COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE")
"""Set for what a notebook's kernel starts."""


def view_for(stream: TextIO, style: str) -> View:
    """The view of a style; live is log where there is no terminal."""
    raw = raw_file(stream)
    if style == "json":
        return EventView(json_lines(stream))
    if style == "quiet":
        return QuietView(stream)
    if raw is None or style == "log" or not stream.isatty() or (style == "auto" and not _redraws()):
        return LogView(stream)
    return LiveView(stream, raw)


def _redraws() -> bool:
    """Whether the terminal can redraw a line. A notebook's `!command` has one that keeps every line ever drawn."""
    return os.environ.get("TERM") not in ("dumb", "unknown") and not any(name in os.environ for name in _NOTEBOOKS)


@dataclass(kw_only=True)
class Report:
    """Reports messages and progress on stderr, to people or as events."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    style: str = "auto"
    """One of `STYLES`."""
    verbose: bool = False
    """Also write a line for every clip, and the time that each phase took."""
    view: View | None = None
    """In place of one of the style."""
    _activity: Activity | None = None
    _ticker: Ticker | None = None

    def __post_init__(self) -> None:
        self._view = self.view or view_for(self.stream, self.style)

    def tell(self, event: str, facts: Mapping[str, Any], lines: Sequence[str]) -> None:
        """Report an event (docs/formats.md): `facts` to programs, `lines` to people."""
        self._view.tell(event, facts, lines)

    def say(self, line: str) -> None:
        """Print one line."""
        self.tell("message", {"text": line}, [line])

    def show_plan(self, plan: Plan) -> None:
        """Print one line per stage: what would happen, and why."""
        lines = plan_lines(plan)
        if plan.nothing_to_do:
            lines.append("nothing to do: every result is in the store")
        self.tell("plan", plan_json(plan), lines)

    def progress_of(self, stage: str) -> Callable[..., None]:
        """A progress function for one stage's workspace (`stages.contract.Progress`).

        train reports a step that is not `interim` only when a line is due by log_every, so a log gets each of them.
        """

        def progress(done: int, total: int, note: str = "", *, interim: bool = False, **figures: float) -> None:
            activity = self._activity_of(stage)
            self._end_phase(activity)
            activity.advance(done, total, note, figures)
            if self.verbose and not interim:
                self.tell("detail", {"text": log_line(activity)}, [log_line(activity)])
            elif self._view.wants_interim or not interim:
                self._view.show(activity, due=stage == "train" or done >= total)

        return progress

    def phase_of(self, stage: str) -> Callable[[str], None]:
        """The function by which a stage names what it does, while nothing is counted."""

        def phase(text: str) -> None:
            if not text:
                return self.end_progress()
            activity = self._activity_of(stage)
            self._end_phase(activity)
            activity.begin_phase(text)
            self._view.show(activity, due=False)

        return phase

    def _activity_of(self, stage: str) -> Activity:
        if self._activity is None or self._activity.stage != stage:
            self.end_progress()
            self._activity = Activity(stage=stage)
            self._ticker = Ticker(self._tick, self._view.tick_seconds)
            self._ticker.start()
        return self._activity

    def _tick(self) -> None:
        if (activity := self._activity) is not None:
            self._view.tick(activity)

    def _end_phase(self, activity: Activity) -> None:
        if self.verbose and activity.phase:
            took = f"{activity.stage:<7} {activity.phase}: {activity.seconds_here:.1f} s"
            self.tell("detail", {"text": took}, [took])

    def end_progress(self) -> None:
        """The stage is done, or has failed: its progress is no longer shown."""
        if self._activity is None or self._ticker is None:
            return
        self._end_phase(self._activity)
        self._ticker.stop()
        self._activity = self._ticker = None
        self._view.end()

    def finished(self, run: StageRun, receipt: Receipt, *, hit: bool) -> None:
        """Print what a stage made, unless it was already there."""
        name, facts = run.stage.name, receipt.facts
        lines = [] if hit else [f"{name:<7} done    {summary(name, facts)}"]
        told = {"stage": name, "reused": hit, "fingerprint": receipt.fingerprint, "facts": dict(facts)}
        self.tell("stage", told, lines)

    def made(self, file: Path) -> None:
        """Print the name and the size of a file that the user asked for."""
        size = file.stat().st_size
        self.tell("file", {"path": str(file), "bytes": size}, [f"{file}  {in_words(size)}"])


def plan_lines(plan: Plan) -> list[str]:
    """The plan as a table."""
    return [f"{run.stage.name:<7} {run.word:<7} {run.reason}" for run in plan.runs]


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs."""
    stages = [
        {
            "stage": run.stage.name,
            "state": run.state.value,
            "reason": run.reason,
            "fingerprint": run.fingerprint,
            "identity": run.identity,
            **run.record,
        }
        for run in plan.runs
    ]
    return {"stages": stages, "nothing_to_do": plan.nothing_to_do}


def summary(stage: str, facts: Mapping[str, Any]) -> str:
    """One line about what a stage made."""
    return {"ingest": _ingest_summary, "encode": _encode_summary, "train": _train_summary}[stage](facts)


def _ingest_summary(facts: Mapping[str, Any]) -> str:
    left_out = {fault["member"] for fault in facts.get("skipped", [])}
    skipped = f", {pluralized(len(left_out), 'file')} left out" if left_out else ""
    length = f"{facts['duration_seconds']:.2f} s ({pluralized(facts['window_frames'], 'frame')})"
    clips = f"{pluralized(facts['num_clips'], 'clip')}{skipped}"
    total = facts["total_seconds"]
    audio = duration(total) if total >= 60 else f"{total:.1f} s"
    return f"{clips}, {audio} of audio; crop length {length}"


def _encode_summary(facts: Mapping[str, Any]) -> str:
    clips = f"{pluralized(facts['num_encoded'], 'clip')} encoded, {facts['num_reused']} reused"
    prompts = facts["num_prompts"] - facts["num_prompts_encoded"]
    return f"{clips}; {pluralized(facts['num_prompts_encoded'], 'prompt')} embedded, {prompts} reused"


def _train_summary(facts: Mapping[str, Any]) -> str:
    before, after = facts["loss_before"], facts["loss_after"]
    change = f"{100 * (after / before - 1):+.1f} %"
    losses = f"{before:.4f} before, {after:.4f} after ({change})"
    if (averaged := facts.get("loss_after_ema")) is not None:
        losses += f", {averaged:.4f} with the average"
    return f"{pluralized(facts['steps_done'], 'step')}; loss on the same clips and noise {losses}"
