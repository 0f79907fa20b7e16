"""Walks a plan: holds the writer's place, opens the workspace, loads the stage, runs it, commits what it made."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from cache.receipt import Receipt
from cache.store import Store
from pipeline.plan import Plan, StageRun, State, plan
from pipeline.recipe import Recipe
from pipeline.report import Report
from pipeline.request import Found, find
from stages.contract import Artifact, Inputs, Workspace

_VERSIONED = ("torch", "numpy", "safetensors", "pyarrow", "h5py", "soundfile", "resampy", "transformers")


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a request led to."""

    plan: Plan
    artifacts: Mapping[str, Artifact]
    files: tuple[Path, ...] = ()
    """What was copied to the output folder."""


def run_until(last: str, recipe: Recipe, report: Report) -> Done:
    """Do what is needed for the artifact of stage `last`, and nothing more."""
    store = Store(recipe.store)
    found = find(recipe, make=True)
    decided = plan(recipe, store, found, last)
    report.show_plan(decided)
    artifacts: dict[str, Artifact] = {}
    with stop_requests() as stop:
        for number, run in enumerate(decided.runs):
            receipt = _receipt_of(run, store, found, recipe, artifacts, report, stop)
            artifacts[run.stage.name] = _artifact(store, receipt)
            report.finished(run, receipt, hit=decided.runs[number].state is State.HIT)
    files = copy_outputs(artifacts["train"], recipe) if last == "train" else ()
    return Done(plan=decided, artifacts=artifacts, files=files)


def _receipt_of(
    run: StageRun,
    store: Store,
    found: Found,
    recipe: Recipe,
    artifacts: Mapping[str, Artifact],
    report: Report,
    stop: StopFlag,
) -> Receipt:
    assert run.fingerprint is not None and run.identity is not None, "weights are found before the plan is walked"
    name = run.stage.name
    known = store.find(name, run.fingerprint)
    if known is not None:
        return known
    with store.hold(name, run.identity):
        # Another process may have finished it while this one waited for its turn.
        known = store.find(name, run.fingerprint)
        return known or _run_stage(run, store, found, recipe, artifacts, report, stop)


def _run_stage(
    run: StageRun,
    store: Store,
    found: Found,
    recipe: Recipe,
    artifacts: Mapping[str, Artifact],
    report: Report,
    stop: StopFlag,
) -> Receipt:
    assert run.fingerprint is not None and run.identity is not None
    name = run.stage.name
    scratch = store.scratch(name, run.identity)
    scratch.mkdir(parents=True, exist_ok=True)
    work = Workspace(
        directory=scratch,
        shared=store.shared,
        resources=recipe.resources,
        continued_from=_earlier(run, store),
        progress=report.progress_of(name),
        say=report.say,
        should_stop=stop.is_set,
    )
    inputs = Inputs(
        artifacts={key: value for key, value in artifacts.items() if key in run.inputs},
        source=found.source,
        weights=found.weights,
        files={"lora_checkpoint": found.lora_checkpoint} if found.lora_checkpoint else {},
    )
    started = now()
    outcome = run.stage.load()(inputs, run.params, work)
    report.end_progress()
    receipt = Receipt(
        stage=name,
        fingerprint=run.fingerprint,
        identity=run.identity,
        version=run.stage.version,
        params=run.record["params"],
        inputs=dict(run.inputs),
        components=dict(run.components),
        facts=dict(outcome.facts),
        files=(),
        environment=environment(),
        started=started,
        finished=now(),
    )
    return store.commit(name, run.fingerprint, scratch, receipt)


def _earlier(run: StageRun, store: Store) -> Path | None:
    """The longest finished artifact of the same run identity that is shorter than what is asked for."""
    if not run.stage.identity_leaves_out:
        return None
    shorter = [
        receipt
        for receipt in store.receipts(run.stage.name)
        if receipt.identity == run.identity and receipt.params["number_of_steps"] <= run.params.number_of_steps
    ]
    if not shorter:
        return None
    longest = max(shorter, key=lambda receipt: int(receipt.params["number_of_steps"]))
    return store.directory(run.stage.name, longest.fingerprint)


def _artifact(store: Store, receipt: Receipt) -> Artifact:
    return Artifact(
        stage=receipt.stage,
        fingerprint=receipt.fingerprint,
        directory=store.directory(receipt.stage, receipt.fingerprint),
        facts=receipt.facts,
    )


def copy_outputs(artifact: Artifact, recipe: Recipe) -> tuple[Path, ...]:
    """Copy the adapter and its config to the output folder; a copy that is already the same is left alone."""
    recipe.output.mkdir(parents=True, exist_ok=True)
    pairs = {"adapter.safetensors": f"{recipe.name}.safetensors", "config.json": f"{recipe.name}.json"}
    return tuple(_copied(artifact.directory / made, recipe.output / name) for made, name in pairs.items())


def _copied(made: Path, target: Path) -> Path:
    if not target.is_file() or target.read_bytes() != made.read_bytes():
        aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        shutil.copyfile(made, aside)
        aside.replace(target)
    return target


def environment() -> dict[str, Any]:
    """Versions and machine: recorded, never hashed."""
    versions = {name: metadata.version(name) for name in _VERSIONED}
    return {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system(), **versions}


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class StopFlag:
    """Raised by the first Ctrl-C or SIGTERM; a stage asks it between pieces of work."""

    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def handle(self, number: int, frame: object) -> None:
        """First signal: ask to stop at the next safe point. Second: stop now; the receipt law keeps the store whole."""
        if self._set:
            raise KeyboardInterrupt
        self._set = True
        print("\nstopping at the next safe point; once more to stop at once", file=sys.stderr, flush=True)


@contextmanager
def stop_requests() -> Iterator[StopFlag]:
    """Turn Ctrl-C and SIGTERM into a flag while stages run."""
    flag = StopFlag()
    before = {number: signal.signal(number, flag.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
