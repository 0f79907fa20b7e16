"""Walks a plan: holds the writer's place, opens the workspace, loads the stage, runs it, commits what it made."""

from __future__ import annotations

import platform
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from cache import run_metadata
from cache.receipt import Receipt
from cache.shared_files import write_shared_files
from cache.store import Store
from pipeline.execution.locks import turn, upkeep
from pipeline.execution.outputs import copy_outputs
from pipeline.plan.import_plan import import_plan
from pipeline.plan.missing_files import ON_DEMAND_STAGE, missing_files
from pipeline.plan.packages import check_packages
from pipeline.plan.plan import Plan, StageRun, State, plan
from pipeline.plan.stage_run import scratch_folder
from pipeline.report import Report
from pipeline.request.notices import notices
from pipeline.request.preflight import check_writable_folders
from pipeline.request.recipe import Recipe
from pipeline.request.resolve import ResolvedInputs, resolve_inputs
from stages.contract import Artifact, Inputs, Outcome, Workspace
from stages.errors import DatasetFaults
from stages.references import shared_file_sizes

_VERSIONED = ("torch", "numpy", "safetensors", "pyarrow", "h5py", "soundfile", "resampy", "transformers")
_OPTIONAL = ("torchao", "pytorch-optimizer", "soxr", "triton")
"""Packages that change last bits where they are there."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a request led to."""

    plan: Plan
    artifacts: Mapping[str, Artifact]
    files: tuple[Path, ...] = ()
    """What was copied to the output folder."""


def run_until(last: str, recipe: Recipe, report: Report, *, imported: bool = False) -> Done:
    """Do what is needed for the artifact of stage `last`, and nothing more.

    Args:
        imported: the recipe's data is a pre-encoded folder, not clips.
    """
    check_writable_folders(recipe, output=last == "train")
    store = Store(recipe.store)
    found = resolve_inputs(recipe, fetch=True, say=report.say, progress=report.progress_of("fetch"))
    report.end_progress()
    decided = (import_plan if imported else plan)(recipe, store, found, last)
    check_packages(recipe, decided)
    for line in notices(recipe):
        report.say(line)
    report.show_plan(decided)
    with stop_requests() as stop:
        walk = Walk(recipe=recipe, store=store, found=found, report=report, stop=stop)
        for run in decided.runs:
            walk.finish(run)
    files = copy_outputs(decided.runs[-1], walk.artifacts["train"], recipe, report.say) if last == "train" else ()
    return Done(plan=decided, artifacts=walk.artifacts, files=files)


@dataclass(kw_only=True)
class Walk:
    """One pass through a plan, stage by stage."""

    recipe: Recipe
    store: Store
    found: ResolvedInputs
    report: Report
    stop: StopFlag
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    """What is there so far, by stage."""

    def finish(self, run: StageRun) -> None:
        """Have one stage's artifact, by finding it or by making it."""
        receipt = self.known(run) or self.made(run)
        run_metadata.remove_orphan(self.store, scratch_folder(run, self.store).name)
        self.artifacts[run.stage.name] = Artifact(
            stage=receipt.stage,
            fingerprint=receipt.fingerprint,
            directory=self.store.directory(receipt.stage, receipt.fingerprint),
            facts=receipt.facts,
        )
        self.report.finished(run, receipt, hit=run.state is State.HIT)

    def known(self, run: StageRun) -> Receipt | None:
        """The receipt of the artifact, if it is finished and what it names is there."""
        assert run.fingerprint is not None, "weights are found before a plan is walked"
        receipt = self.store.find(run.stage.name, run.fingerprint)
        if receipt is None or (run.stage.name == ON_DEMAND_STAGE and run.state is State.HIT):
            return receipt
        return None if missing_files(run, self.store) else receipt

    def made(self, run: StageRun) -> Receipt:
        """Run the stage as the only writer of its run, and commit."""
        with turn(self.store, run, self.report.say, self.stop.is_set):
            with upkeep(self.store, self.report.say, self.stop.is_set):
                # Another process may have finished it between the look-up and the hold.
                if (known := self.known(run)) is not None:
                    return known
                work, started = self.workspace(run), now()
            with self.refusals_noted(run, work):
                outcome = run.stage.load()(self.inputs(run), run.params, work)
            self.report.end_progress()
            return self.committed(run, work, receipt_of(run, outcome, started))

    @contextmanager
    def refusals_noted(self, run: StageRun, work: Workspace) -> Iterator[None]:
        """Write down that the data was refused: such a run is not gone on with, it begins anew once that is mended."""
        try:
            yield
        except DatasetFaults as error:
            refused = replace(note_of(run, work.directory.name), num_problems=len(error.faults))
            run_metadata.write(self.store, refused)
            raise

    def committed(self, run: StageRun, work: Workspace, receipt: Receipt) -> Receipt:
        """Make the workspace the artifact, in place of one whose shared files were lost."""
        name, fingerprint = receipt.stage, receipt.fingerprint
        if needs := shared_file_sizes(name, work.directory, receipt.facts, self.store.shared):
            write_shared_files(work.directory, needs)
        self.store.drop(name, fingerprint)
        sealed = self.store.commit(name, fingerprint, work.directory, receipt)
        run_metadata.remove(self.store, work.directory.name)
        return sealed

    def workspace(self, run: StageRun) -> Workspace:
        """Where a stage writes: a folder named after its run, so that running again is resuming."""
        scratch = scratch_folder(run, self.store)
        scratch.mkdir(parents=True, exist_ok=True)
        run_metadata.write(self.store, note_of(run, scratch.name))
        return Workspace(
            directory=scratch,
            shared=self.store.shared,
            resources=self.recipe.resources,
            continued_from=_earlier(run, self.store),
            progress=self.report.progress_of(run.stage.name),
            say=self.report.say,
            should_stop=self.stop.is_set,
        )

    def inputs(self, run: StageRun) -> Inputs:
        """What a stage may read."""
        lora = self.found.lora_checkpoint
        return Inputs(
            artifacts={name: made for name, made in self.artifacts.items() if name in run.inputs},
            source=self.found.source,
            weights=self.found.weights,
            files={"lora_checkpoint": lora} if lora else {},
        )


def note_of(run: StageRun, name: str) -> run_metadata.UnfinishedRun:
    """What is known of a run while it is unfinished."""
    return run_metadata.UnfinishedRun(
        name=name,
        stage=run.stage.name,
        fingerprint=str(run.fingerprint),
        identity=str(run.identity),
        params=run.record["params"],
        inputs=dict(run.inputs),
        components=dict(run.components),
        began=now(),
    )


def receipt_of(run: StageRun, outcome: Outcome, started: str) -> Receipt:
    """What a finished stage will be known by; the store adds the files."""
    return Receipt(
        stage=run.stage.name,
        fingerprint=str(run.fingerprint),
        identity=str(run.identity),
        version=run.stage.version,
        params=run.record["params"],
        inputs=dict(run.inputs),
        components=dict(run.components),
        facts=dict(outcome.facts),
        environment=environment(),
        started=started,
        finished=now(),
    )


def _earlier(run: StageRun, store: Store) -> Path | None:
    """The longest finished artifact of the same run identity that is shorter than what is asked for."""
    if not run.stage.excluded_from_identity(run.params):
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


def environment() -> dict[str, Any]:
    """Versions and machine: recorded, never hashed."""
    versions = {name: metadata.version(name) for name in _VERSIONED}
    for name in _OPTIONAL:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
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
