"""plan, ingest, encode, train and run, as functions. Light: arrays and torch are loaded by the stage that runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cache.errors import CacheError
from pipeline.cli_errors import error_json, error_type
from pipeline.errors import InstallationBroken, PipelineError
from pipeline.execution import runner
from pipeline.path_errors import memory_errors, path_errors
from pipeline.report import Report, plan_json
from pipeline.request.recipe import Recipe, read_recipe
from pipeline.settings.other_names import canonical
from pipeline.terminal.views import EventView
from sa3_trainer.installation import explanation
from sa3_trainer.results import Event, Plan, PlannedStage, RunResult, StageResult, Stopped, TrainerError
from stages import errors as stage_errors
from stages.errors import StageError

Data = str | os.PathLike[str]
OnEvent = Callable[[Event], None]


def plan(
    data: Data | None = None, *, recipe: Data | None = None, on_event: OnEvent | None = None, **fields: Any
) -> Plan:
    """What `run` would do, and why; changes nothing and loads no torch. Arguments and errors as for `run`."""
    from cache.store import Store
    from pipeline.plan.plan import plan as planned
    from pipeline.request.resolve import resolve_inputs

    with _errors():
        request = _request(data, recipe, fields, trains=True)
        with path_errors(request.folders):
            resolved = resolve_inputs(request, fetch=False, phase=_report(on_event, quiet=True).phase_of("read"))
            decided = planned(request, Store(request.store), resolved)
    names = ("stage", "state", "reason", "fingerprint")
    stages = [PlannedStage(**{name: stage[name] for name in names}) for stage in plan_json(decided)["stages"]]
    return Plan(stages=tuple(stages))


def run(
    data: Data | None = None,
    *,
    recipe: Data | None = None,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] | None = None,
    quiet: bool = False,
    **fields: Any,
) -> RunResult:
    """Ingest, encode (with `pre_encode=True`) and train: the whole main job.

    Args:
        data: a .zip or a folder of clips, or an address; the recipe's where it is left out.
        recipe: a TOML file of fields, or the JSON beside an adapter; `fields` win.
        on_event: called with each event, from the thread of this call.
        should_stop: asked between pieces of work; True stops at the next safe point.
        quiet: without on_event, write only warnings to stderr.
        fields: of the request, by name (docs/fields.md) or short name, such as `steps=500`; None: not given.

    Raises:
        TrainerError: the request or the data is wrong, or the work failed.
        Stopped: it was asked to stop; the same call goes on from there.
    """
    return _made("train", data, recipe, fields, on_event, should_stop, quiet=quiet)


def ingest(
    data: Data | None = None,
    *,
    recipe: Data | None = None,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] | None = None,
    quiet: bool = False,
    **fields: Any,
) -> RunResult:
    """Unpack, pair captions, check clips and prepare their audio; needs no weights. As `run` otherwise."""
    return _made("ingest", data, recipe, fields, on_event, should_stop, quiet=quiet)


def encode(
    data: Data | None = None,
    *,
    recipe: Data | None = None,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] | None = None,
    quiet: bool = False,
    **fields: Any,
) -> RunResult:
    """Encode clips to latents and prompts to embeddings, what the store lacks of them. As `run` otherwise."""
    return _made("encode", data, recipe, fields, on_event, should_stop, quiet=quiet)


def train(
    data: Data | None = None,
    *,
    recipe: Data | None = None,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] | None = None,
    quiet: bool = False,
    **fields: Any,
) -> RunResult:
    """Train on cached latents, encoding what is missing: `run` with `pre_encode=True`."""
    return _made("train", data, recipe, {"pre_encode": True, **fields}, on_event, should_stop, quiet=quiet)


def _made(
    last: str,
    data: Data | None,
    recipe: Data | None,
    fields: Mapping[str, Any],
    on_event: OnEvent | None,
    should_stop: Callable[[], bool] | None,
    *,
    quiet: bool,
) -> RunResult:
    """Run all stages up to `last`."""
    with _errors():
        request, report = _request(data, recipe, fields, trains=last == "train"), _report(on_event, quiet=quiet)
        with path_errors(request.folders):
            done = runner.run_until(last, request, report, should_stop=should_stop or _never)
    return _result(done)


def _result(done: runner.RunResult) -> RunResult:
    stages = {
        name: StageResult(
            stage=name,
            fingerprint=made.fingerprint,
            reused=name in done.reused,
            directory=made.directory,
            facts=dict(made.facts),
        )
        for name, made in done.artifacts.items()
    }
    return RunResult(stages=stages, files=done.files)


def _request(data: Data | None, recipe: Data | None, fields: Mapping[str, Any], *, trains: bool) -> Recipe:
    """The validated request. Raises: RecipeError."""
    given = {canonical(name): _plain(value) for name, value in fields.items()}
    where, file = _plain(data), None if recipe is None else Path(recipe)
    return read_recipe(where, given, file, trains=trains, check_files=True)


def _plain(value: Any) -> Any:
    """A path as text; any other value as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _report(on_event: OnEvent | None, *, quiet: bool) -> Report:
    if on_event is None:
        return Report(style="quiet" if quiet else "log")
    call = on_event

    def emit(event: Mapping[str, Any]) -> None:
        facts = dict(event)
        call(Event(kind=facts.pop("event"), facts=facts))

    return Report(view=EventView(emit))


def _never() -> bool:
    return False


@contextmanager
def _errors() -> Iterator[None]:
    """Raises the project's own errors as `TrainerError` and `Stopped`."""
    try:
        with memory_errors(), path_errors({}):
            yield
    except (PipelineError, StageError, CacheError) as error:
        kind = Stopped if isinstance(error, stage_errors.Stopped) else TrainerError
        raise kind(str(error), error_type(error), error_json(error)["detail"]) from error
    except ImportError as error:
        if (said := explanation(error)) is None:
            raise
        broken = InstallationBroken(said)
        raise TrainerError(said, error_type(broken), error_json(broken)["detail"]) from error
