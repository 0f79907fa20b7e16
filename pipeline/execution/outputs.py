"""Checks at the start that the output files can be written; copies them at the end, with a warning before it replaces.

Light: standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from cache.files.atomic_files import atomic_write_bytes
from pipeline.errors import FieldError, FolderNotWritable, RecipeError
from pipeline.path_errors import why_not_writable
from pipeline.plan.stage_run import StageRun
from pipeline.request.recipe import Recipe
from stages.contract import Artifact

OUTPUT_SUFFIXES = (".safetensors", ".json", "_ema.safetensors")
"""What is appended to the name of a training's output files."""
_LONGEST_TEMPORARY = f".{'0' * 8}-{'0' * 10}-{'0' * 16}.tmp"
"""What is appended to a file's name while it is written (`cache.files.atomic_files`)."""


def check_output(recipe: Recipe) -> None:
    """Check that the output files can be written, before hours of work depend on it.

    Raises:
        FolderNotWritable: naming --output.
        RecipeError: their name is too long for that disk, or taken by a folder.
    """
    if (why := why_not_writable(recipe.output)) is not None:
        raise FolderNotWritable("output", recipe.output, why)
    for suffix in OUTPUT_SUFFIXES:
        file = recipe.output / f"{recipe.name}{suffix}"
        try:
            taken = file.is_dir()
            with suppress(FileNotFoundError):
                file.with_name(f"{file.name}{_LONGEST_TEMPORARY}").lstat()
        except OSError as error:
            raise _name_error(recipe, f"cannot name a file in {recipe.output} ({error.strerror})") from error
        if taken:
            raise _name_error(recipe, f"{file} is a folder: remove it, or give another --name")


def _name_error(recipe: Recipe, why: str) -> RecipeError:
    return RecipeError([FieldError(loc=("name",), type="value_error", msg=why, input=recipe.values["name"])])


def copy_outputs(run: StageRun, artifact: Artifact, recipe: Recipe, say: Callable[[str], None]) -> tuple[Path, ...]:
    """Copy the adapter and its config to the output folder; return the copies. An identical copy is left alone.

    Files of the same run with as many steps or fewer are replaced without a message, since this run continued them.
    """
    recipe.output.mkdir(parents=True, exist_ok=True)
    pairs = {"adapter.safetensors": f"{recipe.name}.safetensors", "config.json": f"{recipe.name}.json"}
    averaged = recipe.output / f"{recipe.name}_ema.safetensors"
    if (artifact.directory / "adapter_ema.safetensors").exists():
        pairs["adapter_ema.safetensors"] = averaged.name
    elif averaged.exists():
        say(f"{averaged} is from an earlier training: this one has no moving average (--ema-decay)")
    configs = (_config(recipe.output / pairs["config.json"]), _config(artifact.directory / "config.json"))
    warn = None if continues(*configs, run) else say
    return tuple(_copied(artifact.directory / source, recipe.output / name, warn) for source, name in pairs.items())


def continues(before: Mapping[str, Any], now: Mapping[str, Any], run: StageRun) -> bool:
    """Whether two configs are of the same run, and the second has no fewer steps."""
    left_out = run.stage.excluded_from_identity(run.params)
    names = [field.name for field in fields(run.params) if field.name not in left_out]
    return _run_facts(before, names) == _run_facts(now, names) and before["number_of_steps"] <= now["number_of_steps"]


def _run_facts(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """What identifies the run of a config: its params, its weights, and the artifact it was trained on."""
    dataset = config.get("dataset")
    trained_on = dataset.get("artifact") if isinstance(dataset, dict) else None
    return {name: config.get(name) for name in (*names, "weights_digests")} | {"trained on": trained_on}


def _config(file: Path) -> Mapping[str, Any]:
    """A config.json; empty where there is none, or no valid one."""
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) and isinstance(config.get("number_of_steps"), int) else {}


def _copied(source: Path, target: Path, warn: Callable[[str], None] | None) -> Path:
    content = source.read_bytes()
    before = target.read_bytes() if target.is_file() else None
    if before != content:
        if before is not None and warn is not None:
            warn(f"{target} is replaced: it was from another training (give each its own --name to keep both)")
        atomic_write_bytes(target, content)
    return target
