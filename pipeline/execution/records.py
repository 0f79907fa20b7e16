"""What the store records about a run: metadata while it is unfinished, then its receipt.

Light: standard library only.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from cache.receipt import Receipt
from cache.run_metadata import UnfinishedRun
from pipeline.execution.command_line import REQUEST, command_line, shown_data
from pipeline.execution.output_name import ADAPTER
from pipeline.plan.stage_run import StageRun
from pipeline.request.recipe import Recipe
from stages.contract import Outcome
from stages.versions import version_of

_REQUIRED = ("torch", "numpy", "safetensors", "pyarrow", "h5py", "soundfile", "resampy", "transformers")
_OPTIONAL = ("torchao", "pytorch-optimizer", "soxr", "triton")
"""Packages that may change the last bits of a result where they are installed."""


def request_record(recipe: Recipe, last: str, output: str, *, imported: bool) -> dict[str, str]:
    """What was asked for, as people know it: recorded beside a result, never part of its name.

    Args:
        output: the name of a training's files.
    """
    command = command_line(recipe, "run" if last == "train" else last, imported=imported)
    file = {"output": str(recipe.output / f"{output}{ADAPTER}")} if last == "train" else {}
    return {"data": shown_data(recipe), "command": command, **file}


def unfinished_run(run: StageRun, name: str, request: Mapping[str, str]) -> UnfinishedRun:
    """Metadata of a run that begins.

    Args:
        name: name of its scratch folder.
        request: as `request_record` gives it.
    """
    return UnfinishedRun(
        name=name,
        stage=run.stage.name,
        fingerprint=str(run.fingerprint),
        identity=str(run.identity),
        params=run.record["params"],
        inputs=dict(run.inputs),
        components=dict(run.components),
        began=now(),
        request=dict(request),
    )


def receipt_of(run: StageRun, outcome: Outcome, started: str, request: Mapping[str, str]) -> Receipt:
    """The receipt of a finished stage; the store adds the list of files."""
    return Receipt(
        stage=run.stage.name,
        fingerprint=str(run.fingerprint),
        identity=str(run.identity),
        version=run.stage.version,
        params=run.record["params"],
        inputs=dict(run.inputs),
        components=dict(run.components),
        facts=dict(outcome.facts),
        environment=environment() | {REQUEST: dict(request)},
        started=started,
        finished=now(),
    )


def environment() -> dict[str, Any]:
    """Versions of packages, and the machine: recorded, never hashed."""
    versions = {name: version_of(name) for name in _REQUIRED}
    for name in _OPTIONAL:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system(), **versions}


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
