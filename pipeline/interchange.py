"""The reference's pre-encoded folder in place of clips, and out of an encode artifact. Light: standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache.store import Store
from pipeline import plan as planning
from pipeline.errors import FieldError, RecipeError
from pipeline.fields import FIELDS
from pipeline.plan import Plan, StageRun, State
from pipeline.recipe import Recipe
from pipeline.request import Found
from stages.contract import Artifact
from stages.encode.stage import IMPORT, ImportParams

WITHOUT_EFFECT = ("trigger_phrase", "encode_precision", "caption_template", "long_clips", "resampler", "audio_sha256")
"""Fields that decide what is encoded from clips and captions; a pre-encoded folder is taken as it is."""


def import_source(data: str | None, folder: Path | None) -> str | None:
    """What the recipe's data is: the folder of --import, which takes the place of DATA.

    Raises:
        RecipeError: both are given, or the folder is none.
    """
    if folder is None:
        return data
    if data is not None:
        raise _wrong("import", "data_twice", "takes the place of DATA; give one of them", str(folder))
    if not folder.is_dir():
        raise _wrong("import", "not_a_folder", "must be a folder with .npy and .json files", str(folder))
    return str(folder)


def import_plan(recipe: Recipe, store: Store, found: Found, last: str = "train") -> Plan:
    """encode reads the folder instead of prepared audio, and train follows as ever.

    Raises:
        RecipeError: a field is set that could have no effect on a pre-encoded folder.
    """
    _refuse_without_effect(recipe, last)
    digests = found.weights.digests if found.weights else {}
    bare = StageRun(
        stage=IMPORT,
        params=import_params(recipe),
        inputs={"source": found.source.fingerprint},
        components={name: digests.get(name, "") for name in IMPORT.components},
        fingerprint=None,
        identity=None,
        state=State.MISS,
        reason=found.why_no_weights,
    )
    encode = _with_reason(planning.looked_up(bare, store), store) if digests else bare
    if last == "encode":
        return Plan(runs=(encode,))
    train = planning.stage_run(planning.stage("train"), recipe, store, found, {"encode": encode.fingerprint})
    return Plan(runs=(encode, train))


def import_params(recipe: Recipe) -> ImportParams:
    """What decides the artifact."""
    return ImportParams(
        model=recipe.model.name,
        native_samples=recipe.model.native_samples,
        latent_format=recipe.values["latent_format"],
        latent_dtype=recipe.values["latent_dtype"],
        duration_seconds=recipe.values["duration"],
        max_clips=recipe.values["max_clips"],
        skip_bad=recipe.values["skip_bad"],
    )


def _with_reason(run: StageRun, store: Store) -> StageRun:
    """A miss explained against earlier imports, not against encodings of clips."""
    if run.state is not State.MISS:
        return run
    imports = [receipt for receipt in store.receipts("encode") if "source" in receipt.inputs]
    return replace(run, reason=f"reads a pre-encoded folder; {planning.reason(run.record, imports)}")


def _refuse_without_effect(recipe: Recipe, last: str) -> None:
    defaults: Mapping[str, Any] = {field.name: field.default for field in FIELDS}
    why = "has no effect on an imported folder, whose latents and prompts are taken as they are; leave it out"
    given = [name for name in WITHOUT_EFFECT if recipe.values[name] != defaults[name]]
    errors = [FieldError(loc=(name,), type="without_effect", msg=why, input=recipe.values[name]) for name in given]
    if last == "train" and not recipe.values["pre_encode"]:
        said = "must be on: an imported folder holds latents and no audio"
        errors.append(FieldError(loc=("pre_encode",), type="without_audio", msg=said))
    if errors:
        raise RecipeError(errors)


def check_export(folder: Path | None) -> None:
    """Refuse a folder that holds something, before anything runs. Raises: RecipeError."""
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _wrong("export", "not_empty", "must be a new or empty folder", str(folder))


def export(artifact: Artifact, recipe: Recipe, folder: Path, say: Any) -> tuple[Path, ...]:
    """Write the artifact as a pre-encoded folder; returns its files."""
    from stages.encode.exported import export_folder  # deferred: arrays only when there is something to write

    return tuple(export_folder(artifact, Store(recipe.store).shared, recipe.model, folder, say))


def _wrong(field: str, type: str, msg: str, given: str) -> RecipeError:
    return RecipeError([FieldError(loc=(field,), type=type, msg=msg, input=given)])
