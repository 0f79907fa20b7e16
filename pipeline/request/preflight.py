"""Checks a recipe against the headers of its weights and adapter file, before anything runs. Light: no arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import FieldError, RecipeError
from pipeline.request.recipe import Recipe
from stages import catalogue
from stages.adapters.adapter_header import (
    CONFIG,
    AdapterHeader,
    NotAnAdapterFile,
    kinds_of,
    ranks_of,
    read_adapter_header,
)
from stages.adapters.header_faults import other_layout, tensor_faults
from stages.adapters.kind import kind_named
from stages.adapters.target_layers import layer_shapes, spec_rank_limit
from stages.contract import Weights
from stages.errors import FilterMatchesNothing, RankTooLarge, WeightsNotFound
from stages.models.checkpoint_folder import tensor_shapes
from stages.records import AdapterSpec
from stages.train.stage import LEGACY_KINDS


def check_request(recipe: Recipe, weights: Weights | None, lora: Path | None) -> None:
    """Check the recipe against the model's layers and the adapter file to continue from; all errors at once.

    Raises:
        RecipeError: naming each field.
        WeightsNotFound: the weights are those of another model.
    """
    if weights is not None:
        check_model(recipe, weights)
    errors = [*_dropout_errors(recipe)]
    errors += _layer_errors(recipe, weights) if weights else []
    errors += _adapter_errors(recipe, lora, weights) if lora else []
    if errors:
        raise RecipeError(errors)


def check_model(recipe: Recipe, weights: Weights) -> None:
    """Check that the weights are those of the recipe's model, by the sizes in their config. Raises: WeightsNotFound."""
    spec, sizes = recipe.model, weights.sizes
    facts = {
        "sample rate": (sizes.sample_rate_hz, spec.sample_rate_hz),
        "downsampling ratio": (sizes.downsampling_ratio, spec.downsampling_ratio),
        "latent channels": (sizes.latent_channels, spec.latent_channels),
        "sample size": (sizes.max_samples, spec.max_samples),
    }
    wrong = [
        f"{name} {found} where {spec.name} has {wanted}" for name, (found, wanted) in facts.items() if found != wanted
    ]
    if wrong:
        remedy = f"Point --weights at the folder of {spec.repo}" if spec.repo else "Leave --weights out"
        raise WeightsNotFound(str(weights.folder), "; ".join(wrong), f"{remedy}, or change --model.")


def _dropout_errors(recipe: Recipe) -> Iterator[FieldError]:
    """Adapter kinds on a singular basis have no dropout."""
    kind, dropout = recipe.values["adapter_type"], recipe.values["adapter_dropout"]
    if dropout > 0 and kind_named(kind).basis.singular:
        yield FieldError(loc=("adapter_dropout",), type="value_error", msg=f"{kind} has no dropout", input=dropout)


def _layer_errors(recipe: Recipe, weights: Weights) -> Iterator[FieldError]:
    """A rank that the layers do not allow, or a filter that matches no layer."""
    try:
        spec_rank_limit(_spec(recipe), layer_shapes(tensor_shapes(weights.folder / "model.safetensors")))
    except RankTooLarge as error:
        yield FieldError(loc=("rank",), type="less_than_equal", msg=str(error).removeprefix("rank "))
    except FilterMatchesNothing as error:
        message = str(error).removeprefix(f"{error.field}: ")
        yield FieldError(loc=(error.field,), type="matches_nothing", msg=message)


def _spec(recipe: Recipe) -> AdapterSpec:
    values = recipe.values
    return AdapterSpec(
        kind=values["adapter_type"],
        rank=values["rank"],
        alpha=values["alpha"] or float(values["rank"]),
        include=values["include"],
        exclude=values["exclude"],
    )


_COMPARED = ("adapter_type", "rank", "alpha", "include", "exclude")
"""Entries of an adapter file's lora_config that must equal the field of the same name."""


def _adapter_errors(recipe: Recipe, file: Path, weights: Weights | None) -> Iterator[FieldError]:
    """Errors where the file's own settings differ, or else its tensors; the train stage looks at their values."""
    try:
        header = read_adapter_header(file)
    except (NotAnAdapterFile, OSError) as error:
        message = f"is not an adapter that can be read: {error}"
        yield FieldError(loc=("lora_checkpoint_url",), type="not_an_adapter", msg=message, input=str(file))
        return
    if layout := other_layout(header.shapes):
        message = f"{file.name} has the layout of {layout}, which is not read: start without the file"
        yield FieldError(loc=("lora_checkpoint_url",), type="not_an_adapter", msg=message, input=str(file))
        return
    of_settings = list(
        _errors_by_shape(recipe, file, header) if header.config is None else _by_settings(recipe, file, header)
    )
    yield from of_settings or _tensor_errors(recipe, file, header, weights)


def _by_settings(recipe: Recipe, file: Path, header: AdapterHeader) -> Iterator[FieldError]:
    """Errors where the file's `lora_config` is another than the request."""
    for field, in_file in (header.config or {}).items():
        value = recipe.values.get(field)
        if field in _COMPARED and not _agree(field, in_file, value):
            message = f"is {in_file!r} in {file.name}: train with that, or start without the file"
            yield FieldError(loc=(field,), type="differs_from_file", msg=message, input=value)
    yield from _other_base(recipe, file, header)


def _tensor_errors(recipe: Recipe, file: Path, header: AdapterHeader, weights: Weights | None) -> Iterator[FieldError]:
    """One error for tensors that are not those of the adapter that is asked for, where the layers are known."""
    if weights is None:
        return
    spec, layers = _spec(recipe), layer_shapes(tensor_shapes(weights.folder / "model.safetensors"))
    try:
        found = tensor_faults(header.shapes, kind_named(_kind(recipe)), spec, layers)
    except FilterMatchesNothing:
        return  # said of the field itself
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        message = (
            f"{file.name} does not fit ({'; '.join(found[:5])}{more}): train with the adapter's own model, "
            "adapter_type, rank, include and exclude, or start without it"
        )
        yield FieldError(loc=("lora_checkpoint_url",), type="differs_from_file", msg=message, input=str(file))


def _kind(recipe: Recipe) -> str:
    """The kind that is asked for; the old name means this one."""
    kind = str(recipe.values["adapter_type"])
    return LEGACY_KINDS.get(kind, kind)


def _agree(field: str, in_file: Any, value: Any) -> bool:
    if field == "alpha" and value is None:
        return True
    if field == "adapter_type":
        # The legacy name may stand for either magnitude: only the tensors tell, and the train stage compares those.
        return in_file == "dora" or in_file == ("dora-rows" if value == "dora" else value)
    return bool((list(value) if isinstance(value, tuple) else value) == in_file)


def _errors_by_shape(recipe: Recipe, file: Path, header: AdapterHeader) -> Iterator[FieldError]:
    """A file without lora_config is taken for what the request says, where its tensors allow that."""
    missing = f"{file.name} has no {CONFIG}, which would say adapter_type, rank and alpha"
    ranks, kinds = ranks_of(header.shapes), kinds_of(header.shapes)
    if len(ranks) != 1 or not kinds:
        found = "of different ranks" if len(ranks) > 1 else "of no kind of adapter known here"
        message = f"{missing}, and its tensors are {found}: start without the file"
        yield FieldError(loc=("lora_checkpoint_url",), type="not_an_adapter", msg=message, input=str(file))
        return
    ((rank, _),) = ranks.items()
    kind = recipe.values["adapter_type"]
    if ("dora-rows" if kind == "dora" else kind) not in kinds:
        message = f"{missing}: by its tensors it is {' or '.join(kinds)}; say so by --adapter-type {kinds[0]}"
        yield FieldError(loc=("adapter_type",), type="differs_from_file", msg=message, input=kind)
    if rank != recipe.values["rank"]:
        message = f"{missing}: by its tensors it is of rank {rank}; say so by --rank {rank}"
        yield FieldError(loc=("rank",), type="differs_from_file", msg=message, input=recipe.values["rank"])


def _other_base(recipe: Recipe, file: Path, header: AdapterHeader) -> Iterator[FieldError]:
    """Tensors of an -xs kind have the same shapes on every base, and mean nothing on another one."""
    stated = (header.config or {}).get("base_model")
    names = {spec.short_name: spec.name for spec in catalogue.models().values() if spec.short_name}
    if not kind_named(recipe.values["adapter_type"]).basis.singular or stated not in names:
        return
    if names[stated] != recipe.model.name:
        message = f"{file.name} was trained on {names[stated]}, from whose weights its fixed directions come"
        yield FieldError(loc=("model",), type="differs_from_file", msg=message, input=recipe.model.name)
