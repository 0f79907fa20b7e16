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

from cache.errors import ArtifactDamaged
from cache.files.atomic_files import atomic_write_bytes
from cache.fingerprint import digest_bytes
from cache.receipt import Receipt
from pipeline.errors import FieldError, FolderNotWritable, RecipeError
from pipeline.path_errors import why_not_writable
from pipeline.plan.stage_run import StageRun
from pipeline.request.recipe import Recipe

_ADAPTER, _CONFIG, _AVERAGED = "adapter.safetensors", "config.json", "adapter_ema.safetensors"
_SUFFIXES = {_ADAPTER: ".safetensors", _CONFIG: ".json", _AVERAGED: "_ema.safetensors"}
"""Files of a train artifact, and what the name of each copy ends in."""

OUTPUT_SUFFIXES = tuple(_SUFFIXES.values())
_LONGEST_TEMPORARY = f".{'0' * 8}-{'0' * 10}-{'0' * 16}.tmp"
"""What is appended to a file's name while it is written (`cache.files.atomic_files`)."""


def check_output(recipe: Recipe) -> None:
    """Check that the output files can be written, before hours of work depend on it.

    Raises:
        FolderNotWritable: naming --output.
        RecipeError: their name is too long for that disk, or taken by a folder or by a JSON file of something else.
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
    config = recipe.output / f"{recipe.name}{_SUFFIXES[_CONFIG]}"
    if _is_foreign(config):
        raise _name_error(recipe, f"{config} was not written by a training: give another --name, or another --output")


def adapter_copy(recipe: Recipe) -> Path:
    """Where the adapter is copied to."""
    return recipe.output / f"{recipe.name}{_SUFFIXES[_ADAPTER]}"


def _is_foreign(config: Path) -> bool:
    """Whether a file is a JSON document of something else, such as the sidecar of a clip; a damaged one is none."""
    try:
        content = json.loads(config.read_bytes())
    except (OSError, ValueError):
        return False
    return not (isinstance(content, dict) and "number_of_steps" in content)


def _name_error(recipe: Recipe, why: str) -> RecipeError:
    return RecipeError([FieldError(loc=("name",), type="value_error", msg=why, input=recipe.values["name"])])


def copy_outputs(
    run: StageRun, directory: Path, receipt: Receipt, recipe: Recipe, say: Callable[[str], None]
) -> tuple[Path, ...]:
    """Copy the adapter and its config to the output folder; return the copies. An identical copy is left alone.

    Files of the same run with as many steps or fewer are replaced without a message, since this run continued them.

    Args:
        directory: the folder of the train artifact.

    Raises:
        ArtifactDamaged: a file has other bytes than its receipt says; nothing is copied.
    """
    names = {source: f"{recipe.name}{suffix}" for source, suffix in _SUFFIXES.items()}
    digests = {entry.name: entry.sha256 for entry in receipt.files if entry.name in names}
    contents = _contents(directory, digests)
    recipe.output.mkdir(parents=True, exist_ok=True)
    averaged = recipe.output / names[_AVERAGED]
    if _AVERAGED not in contents and averaged.exists():
        say(f"{averaged} is from an earlier training: this one has no moving average (--ema-decay)")
    before = _config(_bytes_of(recipe.output / names[_CONFIG]))
    warn = None if continues(before, _config(contents.get(_CONFIG)), run) else say
    return tuple(_written(recipe.output / names[source], content, warn) for source, content in contents.items())


def _contents(directory: Path, digests: Mapping[str, str]) -> dict[str, bytes]:
    """The files of an artifact, in the order of their copies. Raises: ArtifactDamaged."""
    contents = {name: (directory / name).read_bytes() for name in _SUFFIXES if name in digests}
    changed = [name for name, content in contents.items() if digest_bytes(content) != digests[name]]
    if changed:
        raise ArtifactDamaged(directory, [f"{name} has other bytes than when it was committed" for name in changed])
    return contents


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


def _config(content: bytes | None) -> Mapping[str, Any]:
    """A config.json; empty where there is none, or no valid one."""
    try:
        config = json.loads(content or b"")
    except ValueError:
        return {}
    return config if isinstance(config, dict) and isinstance(config.get("number_of_steps"), int) else {}


def _bytes_of(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _written(target: Path, content: bytes, warn: Callable[[str], None] | None) -> Path:
    before = _bytes_of(target)
    if before != content:
        if before is not None and warn is not None:
            warn(f"{target} is replaced: it was from another training (give each its own --name to keep both)")
        atomic_write_bytes(target, content)
    return target
