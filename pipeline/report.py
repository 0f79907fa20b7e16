"""What the commands print for people and programs: plan, progress, results of stages. Light: standard library only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from cache.receipt import Receipt
from pipeline.plan.plan import Plan, StageRun
from stages.plural import pluralized

_REDRAW_SECONDS = {True: 0.2, False: 5.0}
"""Least time between two progress lines: on a terminal (True), and in a log."""


@dataclass(kw_only=True)
class Report:
    """Prints messages and progress for people on stderr."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _unfinished_line: bool = False
    _last_drawn: float = 0.0

    def say(self, line: str) -> None:
        """Print one line."""
        self.end_progress()
        print(line, file=self.stream, flush=True)

    def show_plan(self, plan: Plan) -> None:
        """Print one line per stage: what would happen, and why."""
        for line in plan_lines(plan):
            self.say(line)
        if plan.nothing_to_do:
            self.say("nothing to do: every result is in the store")

    def progress_of(self, stage: str) -> Callable[..., None]:
        """A progress function for one stage's workspace; its first call is always shown.

        train calls it only when a line is due by log_every, so a log gets every one of its lines.
        """
        self._last_drawn = 0.0
        every_call = stage == "train" and not self.stream.isatty()

        def progress(done: int, total: int, note: str = "") -> None:
            self._draw(f"{stage:<7} {done}/{total}  {note}".rstrip(), due=every_call or done >= total)

        return progress

    def _draw(self, line: str, *, due: bool) -> None:
        terminal = self.stream.isatty()
        if not due and time.monotonic() - self._last_drawn < _REDRAW_SECONDS[terminal]:
            return
        self._last_drawn = time.monotonic()
        if terminal:
            print(f"\r\x1b[K{line}", end="", file=self.stream, flush=True)
            self._unfinished_line = True
        else:
            print(line, file=self.stream, flush=True)

    def end_progress(self) -> None:
        """Leave the progress line on the terminal and move to the next line."""
        if self._unfinished_line:
            print(file=self.stream, flush=True)
            self._unfinished_line = False

    def finished(self, run: StageRun, receipt: Receipt, *, hit: bool) -> None:
        """Print what a stage made, unless it was already there."""
        if not hit:
            self.say(f"{run.stage.name:<7} done    {summary(run.stage.name, receipt.facts)}")


def plan_lines(plan: Plan) -> list[str]:
    """The plan as a table."""
    return [f"{run.stage.name:<7} {run.state.value:<7} {run.reason}" for run in plan.runs]


def plan_json(plan: Plan) -> list[dict[str, Any]]:
    """The plan for programs."""
    return [
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


def summary(stage: str, facts: Mapping[str, Any]) -> str:
    """One line about what a stage made."""
    return {"ingest": _ingest_summary, "encode": _encode_summary, "train": _train_summary}[stage](facts)


def _ingest_summary(facts: Mapping[str, Any]) -> str:
    left_out = {fault["member"] for fault in facts.get("skipped", [])}
    skipped = f", {pluralized(len(left_out), 'file')} left out" if left_out else ""
    window = f"{facts['duration_seconds']:.2f} s ({pluralized(facts['window_frames'], 'frame')})"
    return (
        f"{pluralized(facts['num_clips'], 'clip')}{skipped}, {facts['total_seconds']:.1f} s of audio; window {window}"
    )


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
    return f"{pluralized(facts['steps_done'], 'step')}; mean loss on fixed noise and timesteps {losses}"
