"""Executes a plan: locks each run, runs its stage in a scratch folder, commits the artifact.

Light: a stage's own imports are loaded when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from cache import run_metadata
from cache.receipt import Receipt
from cache.shared_files import write_shared_files
from cache.store import Store
from pipeline.errors import FolderNotWritable
from pipeline.execution.data_folders import check_store_place, mark_folders
from pipeline.execution.locks import maintenance_lock, run_lock
from pipeline.execution.output_name import ADAPTER, OutputName, output_name
from pipeline.execution.outputs import check_output, copy_outputs, hand_out
from pipeline.execution.records import now, receipt_of, request_record, unfinished_run
from pipeline.execution.stop_signals import StopFlag, stop_signals
from pipeline.path_errors import why_not_writable
from pipeline.plan.adapter_values import check_adapter_values
from pipeline.plan.import_plan import import_plan
from pipeline.plan.missing_files import ON_DEMAND_STAGE, missing_files
from pipeline.plan.packages import check_interpreter, check_packages
from pipeline.plan.plan import Plan, StageRun, State, plan
from pipeline.plan.stage_run import scratch_folder
from pipeline.request.notices import data_notices, notices
from pipeline.request.recipe import Recipe
from pipeline.request.resolve import ResolvedInputs, are_to_be_downloaded, resolve_inputs
from stages.contract import Artifact, Inputs, Workspace
from stages.errors import DatasetFaults
from stages.models.bundled_weights import check_bundled_weights
from stages.references import shared_file_sizes


class Observer(Protocol):
    """Receives what a run reports as it goes; `pipeline.report.Report` prints it."""

    def say(self, line: str) -> None:
        """One line of text."""

    def show_plan(self, plan: Plan) -> None:
        """The plan, before anything runs."""

    def progress_of(self, stage: str) -> Callable[..., None]:
        """The function that a stage calls as `progress(done, total, note)`."""

    def phase_of(self, stage: str) -> Callable[[str], None]:
        """The function by which a stage names what it does, while nothing is counted."""

    def end_progress(self) -> None:
        """No further progress of this stage."""

    def finished(self, run: StageRun, receipt: Receipt, *, hit: bool) -> None:
        """A stage's artifact exists; `hit`: it did before."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a request produced."""

    plan: Plan
    artifacts: Mapping[str, Artifact]
    """Artifacts by stage."""
    files: tuple[Path, ...] = ()
    """Files copied to the output folder."""

    @property
    def reused(self) -> frozenset[str]:
        """Stages whose artifacts were there before."""
        return frozenset(run.stage.name for run in self.plan.runs if run.state is State.HIT)

    @property
    def trained(self) -> bool:
        """Whether a training was finished by this run, not found."""
        last = self.plan.runs[-1]
        return last.stage.name == "train" and last.state is not State.HIT


def run_until(
    last: str,
    recipe: Recipe,
    observer: Observer,
    *,
    imported: bool = False,
    export: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Run what is needed for the artifact of stage `last`, and nothing more.

    Args:
        imported: the recipe's data is a pre-encoded folder, not clips.
        export: the folder that the caller will export latents to; it is checked for room.
        should_stop: asked between pieces of work, beside the stop signals.
    """
    try:
        return _run_until(last, recipe, observer, should_stop, imported=imported, export=export)
    finally:
        observer.end_progress()


def _run_until(
    last: str,
    recipe: Recipe,
    observer: Observer,
    should_stop: Callable[[], bool],
    *,
    imported: bool,
    export: Path | None,
) -> RunResult:
    check_store_place(recipe)
    if last != "ingest":
        check_interpreter()
    if last == "train":
        check_output(recipe)
    store, refusal = Store(recipe.store), why_not_writable(recipe.store)
    mark_folders(recipe, store=refusal is None, output=last == "train")
    if last != "ingest" and not imported and refusal is None and are_to_be_downloaded(recipe):
        check_clips_first(recipe, store, observer)
    resolved = resolve_inputs(
        recipe,
        fetch=refusal is None,
        weights=last != "ingest",
        imported=imported,
        say=observer.say,
        progress=observer.progress_of("fetch"),
        phase=observer.phase_of("read"),
    )
    observer.end_progress()
    decided = (import_plan if imported else plan)(recipe, store, resolved, last)
    if refusal is not None and not decided.nothing_to_do:  # results that are there can be used all the same
        raise FolderNotWritable("store", recipe.store, refusal)
    check_packages(recipe, decided)
    check_adapter_values(decided, resolved.lora_checkpoint)
    named = output_name(recipe, decided.runs[-1]) if last == "train" else OutputName("")
    for line in (*notices(recipe, trains=last == "train"), *data_notices(resolved.source), *filter(None, [named.note])):
        observer.say(line)
    observer.show_plan(decided)
    with stop_signals(should_stop) as stop:
        execution = Execution(
            recipe=recipe,
            store=store,
            resolved=resolved,
            observer=observer,
            stop=stop,
            export=export,
            named=named,
            request=request_record(recipe, last, named.name, imported=imported),
        )
        for run in decided.runs:
            execution.finish(run)
    files = execution.hand_out(decided.runs[-1])
    return RunResult(plan=decided, artifacts=execution.artifacts, files=files)


def check_clips_first(recipe: Recipe, store: Store, observer: Observer) -> None:
    """Ingest the dataset before gigabytes of weights are downloaded for it. Raises: as `run_until`."""
    phase, progress = observer.phase_of("read"), observer.progress_of("fetch")
    resolved = resolve_inputs(recipe, fetch=True, weights=False, say=observer.say, progress=progress, phase=phase)
    observer.end_progress()
    (run,) = plan(recipe, store, resolved, "ingest").runs
    if run.state is State.HIT:
        return
    observer.say(f"the clips are checked before the weights of {recipe.model.name} are downloaded")
    with stop_signals() as stop:
        request = request_record(recipe, "ingest", "", imported=False)
        checked = Execution(
            recipe=recipe, store=store, resolved=resolved, observer=observer, stop=stop, request=request
        )
        checked.finish(run)


@dataclass(kw_only=True)
class Execution:
    """One execution of a plan, stage by stage."""

    recipe: Recipe
    store: Store
    resolved: ResolvedInputs
    observer: Observer
    stop: StopFlag
    export: Path | None = None
    """As in `run_until`."""
    named: OutputName = field(default_factory=lambda: OutputName(""))
    """Name of a training's output files."""
    request: Mapping[str, str] = field(default_factory=dict)
    """What was asked for, as `request_record` gives it."""
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    """Artifacts so far, by stage."""
    receipts: dict[str, Receipt] = field(default_factory=dict)
    """Their receipts."""

    def finish(self, run: StageRun) -> None:
        """Look up one stage's artifact, or make it."""
        if (receipt := self.existing(run)) is None:
            receipt = self.make(run)
        elif run.stage.name == "train" and self.recipe.resources.save_every is not None:
            self.observer.say("this training is finished: --save-every exports nothing, as no step is made")
        run_metadata.remove_orphan(self.store, scratch_folder(run, self.store).name)
        self.receipts[run.stage.name] = receipt
        self.artifacts[run.stage.name] = Artifact(
            stage=receipt.stage,
            fingerprint=receipt.fingerprint,
            directory=self.store.directory(receipt.stage, receipt.fingerprint),
            facts=receipt.facts,
        )
        self.observer.finished(run, receipt, hit=run.state is State.HIT)

    def hand_out(self, run: StageRun) -> tuple[Path, ...]:
        """Compare the last artifact with its receipt, and copy a training's files to the output folder."""
        receipt = self.receipts[run.stage.name]
        if run.stage.name == "train":
            directory = self.store.directory(receipt.stage, receipt.fingerprint)
            self.rename_output(run)
            return copy_outputs(directory, receipt, self.recipe, self.named.name, self.observer.say)
        self.store.check(receipt)
        return ()

    def rename_output(self, run: StageRun) -> None:
        """Take another name where another training has taken that of the output files since the start."""
        named = output_name(self.recipe, run)
        if named.name != self.named.name:
            self.observer.say(named.note)
        self.named = named

    def existing(self, run: StageRun) -> Receipt | None:
        """The receipt of the artifact, if it is finished and the shared files it references exist."""
        assert run.fingerprint is not None, "weights are found before a plan is executed"
        receipt = self.store.find(run.stage.name, run.fingerprint)
        if receipt is None or (run.stage.name == ON_DEMAND_STAGE and run.state is State.HIT):
            return receipt
        return None if missing_files(run, self.store) else receipt

    def make(self, run: StageRun) -> Receipt:
        """Run the stage as the only writer of its run, and commit the artifact."""
        with run_lock(self.store, run, self.observer.say, self.stop.is_set):
            with maintenance_lock(self.store, self.observer.say, self.stop.is_set):
                # Another process may have finished it between the look-up and the lock.
                if (receipt := self.existing(run)) is not None:
                    return receipt
                work, started = self.workspace(run), now()
            with self.problems_recorded(run, work):
                work.phase("loading libraries")
                outcome = run.stage.load()(self.inputs(run), run.params, work)
            self.observer.end_progress()
            return self.commit(run, work, receipt_of(run, outcome, started, self.request))

    @contextmanager
    def problems_recorded(self, run: StageRun, work: Workspace) -> Iterator[None]:
        """Records how many problems a dataset was refused for, so that plan and status report a refusal."""
        try:
            yield
        except DatasetFaults as error:
            refused = replace(unfinished_run(run, work.directory.name, self.request), num_problems=len(error.faults))
            run_metadata.write(self.store, refused)
            raise

    def commit(self, run: StageRun, work: Workspace, receipt: Receipt) -> Receipt:
        """Make the workspace the artifact; it replaces one whose shared files were lost."""
        name, fingerprint = receipt.stage, receipt.fingerprint
        if sizes := shared_file_sizes(name, work.directory, receipt.facts, self.store.shared):
            write_shared_files(work.directory, sizes)
        self.store.drop(name, fingerprint)
        committed = self.store.commit(name, fingerprint, work.directory, receipt)
        run_metadata.remove(self.store, work.directory.name)
        return committed

    def workspace(self, run: StageRun) -> Workspace:
        """The stage's workspace: its folder is named after the run, so that running again resumes it."""
        scratch = scratch_folder(run, self.store)
        scratch.mkdir(parents=True, exist_ok=True)
        run_metadata.write(self.store, unfinished_run(run, scratch.name, self.request))
        return Workspace(
            directory=scratch,
            shared=self.store.shared,
            resources=self.recipe.resources,
            continued_from=_shorter_artifact(run, self.store),
            copied_to=copied_to(run.stage.name, self.recipe.output, self.named.name, self.export),
            identity=str(run.identity),
            hand_out=self.hand_out_on_the_way,
            progress=self.observer.progress_of(run.stage.name),
            phase=self.observer.phase_of(run.stage.name),
            say=self.observer.say,
            should_stop=self.stop.is_set,
        )

    def hand_out_on_the_way(self, file: Path, suffix: str) -> None:
        """Copy a file of a stage that is not done to the output folder."""
        hand_out(file, self.recipe.output / f"{self.named.name}{suffix}", self.observer.say)

    def inputs(self, run: StageRun) -> Inputs:
        """What the stage may read; artifacts are compared with their receipts first."""
        for name in self.artifacts:
            if name in run.inputs:
                self.store.check(self.receipts[name])
        lora, weights = self.resolved.lora_checkpoint, self.resolved.weights
        if weights is not None and run.components:
            check_bundled_weights(weights.folder)
        return Inputs(
            artifacts={name: artifact for name, artifact in self.artifacts.items() if name in run.inputs},
            source=self.resolved.source,
            weights=weights,
            files={"lora_checkpoint": lora} if lora else {},
        )


def copied_to(stage: str, output: Path, name: str, export: Path | None) -> Path | None:
    """Where files of a stage's result will be copied; None where nothing is, or where a copy may be there already."""
    if stage == "train":
        return None if (output / f"{name}{ADAPTER}").exists() else output
    return export if stage == "encode" else None


def _shorter_artifact(run: StageRun, store: Store) -> Path | None:
    """The folder of the longest finished artifact of the same run that has no more steps than requested."""
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
