"""What a person sees in a terminal: plan, progress, what was done, a failure with its remedy. Words go to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from cache.errors import CacheError
from cache.receipt import Receipt
from pipeline.errors import FetchFailed, PipelineError, RecipeError, SourceNotFound
from pipeline.plan.plan import Plan, StageRun
from stages.errors import DatasetFaults, SourceUnreadable, StageError
from stages.plural import pluralized

DONE, FAILED, WRONG_USE = 0, 1, 2
"""Exit codes."""

_REDRAW_SECONDS = {True: 0.2, False: 5.0}
"""How often progress is shown: on a terminal, and in a log."""


@dataclass(kw_only=True)
class Report:
    """Writes for people; one per command."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _drawn: bool = False
    _last: float = 0.0

    def say(self, line: str) -> None:
        """One line."""
        self.end_progress()
        print(line, file=self.stream, flush=True)

    def show_plan(self, plan: Plan) -> None:
        """One line per stage: what would happen, and why."""
        for line in plan_lines(plan):
            self.say(line)
        if plan.nothing_to_do:
            self.say("nothing to do: every result is in the store")

    def progress_of(self, stage: str) -> Callable[..., None]:
        """A progress function for one stage's workspace; its first call is always shown.

        train speaks only when a line is due by log_every, so a log gets every one of its lines.
        """
        self._last = 0.0
        paced = stage == "train" and not self.stream.isatty()

        def progress(done: int, total: int, note: str = "") -> None:
            self._draw(f"{stage:<7} {done}/{total}  {note}".rstrip(), due=paced or done >= total)

        return progress

    def _draw(self, line: str, *, due: bool) -> None:
        terminal = self.stream.isatty()
        if not due and time.monotonic() - self._last < _REDRAW_SECONDS[terminal]:
            return
        self._last = time.monotonic()
        if terminal:
            print(f"\r\x1b[K{line}", end="", file=self.stream, flush=True)
            self._drawn = True
        else:
            print(line, file=self.stream, flush=True)

    def end_progress(self) -> None:
        """Leave the progress line on the screen and go to the next."""
        if self._drawn:
            print(file=self.stream, flush=True)
            self._drawn = False

    def finished(self, run: StageRun, receipt: Receipt, *, hit: bool) -> None:
        """What a stage made, unless it was there already."""
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
    return {"ingest": _ingested, "encode": _encoded, "train": _trained}[stage](facts)


def _ingested(facts: Mapping[str, Any]) -> str:
    left_out = {fault["member"] for fault in facts.get("skipped", [])}
    skipped = f", {pluralized(len(left_out), 'file')} left out" if left_out else ""
    window = f"{facts['duration_seconds']:.2f} s ({pluralized(facts['window_frames'], 'frame')})"
    return (
        f"{pluralized(facts['num_clips'], 'clip')}{skipped}, {facts['total_seconds']:.1f} s of audio; window {window}"
    )


def _encoded(facts: Mapping[str, Any]) -> str:
    clips = f"{pluralized(facts['num_encoded'], 'clip')} encoded, {facts['num_reused']} reused"
    prompts = facts["num_prompts"] - facts["num_prompts_encoded"]
    return f"{clips}; {pluralized(facts['num_prompts_encoded'], 'prompt')} embedded, {prompts} reused"


def _trained(facts: Mapping[str, Any]) -> str:
    before, after = facts["loss_before"], facts["loss_after"]
    change = f"{100 * (after / before - 1):+.1f} %"
    losses = f"{before:.4f} before, {after:.4f} after ({change})"
    if (averaged := facts.get("loss_after_ema")) is not None:
        losses += f", {averaged:.4f} with the average"
    return f"{pluralized(facts['steps_done'], 'step')}; mean loss on fixed noise and timesteps {losses}"


@contextmanager
def reported_errors(command: str = "run", *, as_json: bool = False) -> Iterator[None]:
    """Turn the house's errors into message and exit code; anything else is a defect and keeps its traceback.

    Args:
        command: as it was typed.
    """
    try:
        yield
    except RecipeError as error:
        error.command = command
        _fail(error, WRONG_USE, as_json=as_json)
    except SourceNotFound as error:
        _fail(error, WRONG_USE, as_json=as_json)
    except (PipelineError, StageError, CacheError) as error:
        _fail(error, FAILED, as_json=as_json)
    except KeyboardInterrupt:
        print("stopped at once; run the same command again to go on from the last finished piece", file=sys.stderr)
        raise SystemExit(FAILED) from None


def _fail(error: Exception, code: int, *, as_json: bool) -> None:
    print(f"error: {error}", file=sys.stderr)
    if as_json and not getattr(error, "is_told", False):
        print(json.dumps(error_json(error), ensure_ascii=False))
    raise SystemExit(code) from error


def error_json(error: Exception) -> dict[str, Any]:
    """The hosted trainer's error form: a list under `detail`, and the message."""
    if isinstance(error, RecipeError):
        entries = [entry.as_json() for entry in error.errors]
    elif isinstance(error, DatasetFaults):
        entries = [fault.as_json() for fault in error.faults]
    elif isinstance(error, FetchFailed | SourceUnreadable):
        entries = [error.as_json()]
    else:
        code = getattr(error, "code", type(error).__name__)  # the name that programs have known it by
        entries = [{"loc": ["body"], "type": code, "msg": str(error)}]
    return {"detail": entries, "message": str(error)}
