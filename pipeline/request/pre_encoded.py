"""Import and export of the reference's pre-encoded folders: options and checks. Light: standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cache.store import Store
from pipeline.errors import FieldError, FolderNotWritable, RecipeError
from pipeline.path_errors import why_not_writable
from pipeline.request.fields import DEFAULTS, params_of
from pipeline.request.recipe import Recipe
from stages.contract import Artifact
from stages.encode.stage import ImportParams

ENCODING_FIELDS = (
    "trigger_phrase",
    "captions",
    "encode_precision",
    "caption",
    "caption_template",
    "long_clips",
    "resampler",
    "audio_sha256",
)
"""Fields that change what is encoded, and so have no effect on latents that are imported."""


def import_source(data: str | None, folder: Path | None) -> str | None:
    """The recipe's data: DATA, or the folder of --import in its place.

    Raises:
        RecipeError: both are given, or --import is not a folder.
    """
    if folder is None:
        return data
    if data is not None:
        raise _option_error("import", "data_twice", "takes the place of DATA; give one of them", str(folder))
    if not folder.is_dir():
        raise _option_error("import", "not_a_folder", "must be a folder with .npy and .json files", str(folder))
    return str(folder)


def import_params(recipe: Recipe) -> ImportParams:
    """Params of the encode stage when it imports a folder."""
    return params_of(ImportParams, recipe.values, native_samples=recipe.model.native_samples)


def check_import_fields(recipe: Recipe, last: str) -> None:
    """Refuse fields that have no effect on an imported folder.

    Args:
        last: the last stage that runs.

    Raises:
        RecipeError: naming each field.
    """
    why = "has no effect on an imported folder, whose latents and prompts are taken as they are; leave it out"
    given = [name for name in ENCODING_FIELDS if recipe.values[name] != DEFAULTS[name]]
    errors = [FieldError(loc=(name,), type="without_effect", msg=why, input=recipe.values[name]) for name in given]
    if last == "train" and not recipe.values["pre_encode"]:
        must_be_on = "must be on: an imported folder holds latents and no audio"
        errors.append(FieldError(loc=("pre_encode",), type="without_audio", msg=must_be_on))
    if errors:
        raise RecipeError(errors)


def check_export(folder: Path | None) -> None:
    """Check that the folder of --export is new or empty and can be written, before anything runs.

    Raises:
        RecipeError, FolderNotWritable.
    """
    if folder is None:
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _option_error("export", "not_empty", "must be a new or empty folder", str(folder))
    if (why := why_not_writable(folder)) is not None:
        raise FolderNotWritable("export", folder, why)


def export(artifact: Artifact, recipe: Recipe, folder: Path, say: Any) -> tuple[Path, ...]:
    """Write an encode artifact as a pre-encoded folder; returns its files."""
    from stages.encode.pre_encoded.exporting import export_folder  # deferred: arrays

    return tuple(export_folder(artifact, Store(recipe.store).shared, recipe.model, folder, say))


def _option_error(field: str, type: str, msg: str, given: str) -> RecipeError:
    return RecipeError([FieldError(loc=(field,), type=type, msg=msg, input=given)])
