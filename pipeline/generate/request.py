"""A generation as it was asked for: model and weights found, settings checked, the file named.

Light: standard library only.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache.digest_cache import DigestCache
from pipeline.errors import FieldError, RecipeError
from pipeline.request.hub import hub_folder
from pipeline.request.paths import with_home
from pipeline.request.resolve import weights_folder
from pipeline.settings.user_config import user_defaults
from stages import catalogue
from stages.contract import Resources, Source, Weights
from stages.field import Field, broken_rules, param, rule_in_words, same_param
from stages.generate.settings import (
    AUDIO_SUFFIXES,
    BASE_OBJECTIVE,
    DEFAULTS,
    MAX_SEED,
    SHORTEST_COMPARED_SECONDS,
    AdapterUse,
    Generation,
)
from stages.ingest.source.listing import open_source
from stages.models.checkpoint_folder import open_folder
from stages.records import ModelSpec

DEFAULT_MODEL = "medium"
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class WeightsRequest:
    """What finding a base model's weights needs of a request."""

    model: ModelSpec
    weights: Path | None = None


def playable_models() -> dict[str, ModelSpec]:
    """Base models and the inference models that they serve, by name.

    A model that ships with the project has no distilled twin: under either name it is the base, sampled like one.
    """
    base = catalogue.models()
    few_step = {
        spec.inference_model: spec
        if spec.repo is None
        else replace(spec, name=spec.inference_model, repo=spec.repo.removesuffix("-base"))
        for spec in base.values()
    }
    return few_step | base


def checked(
    name: str,
    asked: Mapping[str, Any],
    adapters: Sequence[str],
    resources: Mapping[str, Any],
    out: Path | None,
    *,
    compare: bool = False,
    like: Path | None = None,
) -> tuple[ModelSpec, Generation, list[AdapterUse]]:
    """Model, settings and adapters of a command line.

    Args:
        name: of a model.
        asked: fields of `Generation`; a seed of None is drawn.
        resources: fields of `Resources`.
        compare: the base is heard beside the adapters.
        like: clips of a style to compare with.

    Raises:
        RecipeError: every value that is wrong.
    """
    seed = secrets.randbelow(MAX_SEED + 1) if asked["seed"] is None else asked["seed"]
    clip = Generation(**{**asked, "seed": seed})
    uses, errors = _adapters(adapters)
    errors += [_error(field.name, rule) for given in (clip, _Where(**resources)) for field, rule in _broken(given)]
    models = playable_models()
    if name not in models:
        errors.append(_error("model", f"must be one of {', '.join(models)}; got {name!r}"))
    elif clip.seconds > models[name].max_seconds:
        errors.append(_error("seconds", f"must be at most {models[name].max_seconds}, the native length of {name}"))
    if out is not None and out.suffix.lower() not in AUDIO_SUFFIXES:
        errors.append(_error("out", f"must end in {' or '.join(AUDIO_SUFFIXES)}; got {out.name!r}"))
    if compare and not adapters:
        errors.append(_error("compare", "there is nothing to compare the base with: give --adapter FILE"))
    errors += _style_errors(like, clip.seconds)
    if errors:
        raise RecipeError(errors)
    if clip.cfg is None:
        clip = replace(clip, cfg=models[name].guidance)
    return models[name], clip, uses


def _style_errors(like: Path | None, seconds: float) -> list[FieldError]:
    if like is None:
        return []
    errors = [] if like.exists() else [_error("like", f"there is no folder {like}")]
    if seconds < SHORTEST_COMPARED_SECONDS:
        errors.append(_error("seconds", f"must be at least {SHORTEST_COMPARED_SECONDS:g} with --like; got {seconds:g}"))
    return errors


@dataclass(frozen=True)
class _Where:
    """The device and precision of a generation, under the rules of a training's fields."""

    device: str = same_param(Resources, "device")
    threads: int = same_param(Resources, "threads")
    base_precision: str | None = param(None, choices=PRECISIONS)


def _broken(given: Any) -> list[tuple[Field, str]]:
    """The fields that break their rules, and a sentence about each."""
    sentence = "must be {}; got {!r}".format
    return [(field, sentence(rule_in_words(field), getattr(given, field.attribute))) for field in broken_rules(given)]


def _adapters(texts: Sequence[str]) -> tuple[list[AdapterUse], list[FieldError]]:
    """The adapters of a command line, and what is wrong with them."""
    uses, errors = [], []
    for text in texts:
        try:
            uses.append(AdapterUse.parsed(text))
        except ValueError as error:
            errors.append(_error("adapter", str(error)))
    errors += [_error("adapter", _no_file(use.file)) for use in uses if not use.file.is_file()]
    return uses, errors


def _no_file(file: Path) -> str:
    path, colon, strength = str(file).rpartition(":")
    if colon and Path(path).is_file():
        return f"the strength after the colon must be a number, such as {path}:0.5; got {strength!r}"
    return f"there is no file {file}; `sa3-trainer status` names the adapters that were trained"


def check_objective(spec: ModelSpec, clip: Generation, weights: Weights) -> None:
    """Refuse settings that this model would ignore, and the weights of a base model under another name.

    Raises:
        RecipeError.
    """
    objective = str(weights.sizes.diffusion.get("diffusion_objective"))
    if objective not in DEFAULTS:
        raise RecipeError([_error("weights", f"hold a model of the objective {objective!r}, which has no sampler")])
    is_base = spec.name in catalogue.models()
    if is_base != (objective == BASE_OBJECTIVE):
        other = (
            spec.inference_model
            if is_base
            else next(n for n, s in catalogue.models().items() if s.inference_model == spec.name)
        )
        raise RecipeError([_error("model", f"{weights.folder} is no {spec.name} but its sibling: say --model {other}")])
    if errors := [_error(field, why) for field, why in clip.ignored(objective)]:
        raise RecipeError(errors)


def found_weights(spec: ModelSpec, given: Path | None, store: Path) -> Weights:
    """The weights of a base or inference model: a given folder, the bundled ones, or the hub's.

    Raises:
        WeightsNotFound: with what to type next.
    """
    named = with_home(user_defaults().get("weights", "")) if spec.repo else None
    folder = given or (Path(named) if named else None)
    digest_cache = DigestCache(store / "digests.sqlite", read_only=not store.is_dir())
    if folder is None and spec.name not in catalogue.models():
        folder = hub_folder(spec, download=True)
    if folder is None:
        folder, _ = weights_folder(WeightsRequest(model=spec), fetch=True, digest_cache=digest_cache)
    assert folder is not None, "fetching either finds the folder or raises"
    return open_folder(spec.name, folder, digest_cache)


def style_source(like: Path, store: Path) -> Source:
    """The clips of a style, listed with their digests. Raises: SourceUnreadable."""
    return open_source(like, DigestCache(store / "digests.sqlite", read_only=not store.is_dir()))


def candidate_names(folder: Path, prompt: str, seed: int) -> Iterator[Path]:
    """`<words of the prompt>_<seed>.wav` in a folder, then the same numbered."""
    words = "_".join(re.findall(r"\w+", prompt.lower()))[:40].strip("_") or "sound"
    return (folder / f"{words}_{seed}{'' if number == 1 else f'_{number}'}.wav" for number in range(1, 1_000_000))


def free_name(folder: Path, prompt: str, seed: int) -> Path:
    """The first of the names that no file has."""
    return next(file for file in candidate_names(folder, prompt, seed) if not file.exists())


def _error(field: str, message: str) -> FieldError:
    return FieldError(loc=(field,), type="value_error", msg=message)
