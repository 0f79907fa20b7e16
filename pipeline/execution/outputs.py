"""Checks at the start that the output files can be written; copies them at the end, and adapters on the way.

Light: standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from cache.errors import ArtifactDamaged, CacheError
from cache.files.atomic_files import atomic_write_bytes
from cache.fingerprint import digest_bytes
from cache.receipt import Receipt
from pipeline.errors import FieldError, FolderNotWritable, RecipeError
from pipeline.execution.output_name import ADAPTER, AVERAGED, CONFIG
from pipeline.path_errors import why_not_writable
from pipeline.request.fields import FIELDS
from pipeline.request.paths import PATH_FIELDS
from pipeline.request.recipe import Recipe
from pipeline.settings.recipe_file import REQUEST
from stages.plural import size

_ADAPTER, _CONFIG, _AVERAGED = "adapter.safetensors", "config.json", "adapter_ema.safetensors"
_SUFFIXES = {_ADAPTER: ADAPTER, _CONFIG: CONFIG, _AVERAGED: AVERAGED}
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
    directory: Path, receipt: Receipt, recipe: Recipe, name: str, say: Callable[[str], None]
) -> tuple[Path, ...]:
    """Copy the adapter and its config to the output folder; return the copies. An identical copy is left alone.

    Args:
        directory: the folder of the train artifact.
        recipe: the request, which names the output folder; the copy of the config holds its fields.
        name: of the output files.

    Raises:
        ArtifactDamaged: a file has other bytes than its receipt says; nothing is copied.
    """
    digests = {entry.name: entry.sha256 for entry in receipt.files if entry.name in _SUFFIXES}
    contents = _contents(directory, digests)
    if _CONFIG in contents:
        contents[_CONFIG] = with_request(contents[_CONFIG], recipe)
    folder = recipe.output
    folder.mkdir(parents=True, exist_ok=True)
    averaged = folder / f"{name}{AVERAGED}"
    if _AVERAGED not in contents and averaged.exists():
        say(f"{averaged} is from an earlier training: this one has no moving average (--ema-decay)")
    return tuple(_written(folder / f"{name}{_SUFFIXES[source]}", content) for source, content in contents.items())


def with_request(config: bytes, recipe: Recipe) -> bytes:
    """The config with the fields of the request that are not at their defaults, so that it can be given as a recipe.

    Paths are left out: adapters are passed on together with their configs.
    """
    fields = [field for field in FIELDS if field.hashed and field.name not in PATH_FIELDS]
    changed = {field.name: recipe.values[field.name] for field in fields if recipe.values[field.name] != field.default}
    document = json.loads(config) | {REQUEST: changed}
    return json.dumps(document, indent=2, ensure_ascii=False).encode()


def hand_out(file: Path, target: Path, say: Callable[[str], None]) -> None:
    """Copy an adapter that a training exports on its way; what keeps it from being written is said, and ends nothing.

    Args:
        target: the copy; one with the same content is left alone.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _written(target, file.read_bytes())
    except (OSError, CacheError) as error:
        say(f"{target} was not written ({error}); the training itself is saved in the store")
    else:
        say(f"{target}  {size(target.stat().st_size)}")


def _contents(directory: Path, digests: Mapping[str, str]) -> dict[str, bytes]:
    """The files of an artifact, in the order of their copies. Raises: ArtifactDamaged."""
    contents = {name: (directory / name).read_bytes() for name in _SUFFIXES if name in digests}
    changed = [name for name, content in contents.items() if digest_bytes(content) != digests[name]]
    if changed:
        raise ArtifactDamaged(directory, [f"{name} has other bytes than when it was committed" for name in changed])
    return contents


def _written(target: Path, content: bytes) -> Path:
    if not target.is_file() or target.read_bytes() != content:
        atomic_write_bytes(target, content)
    return target
