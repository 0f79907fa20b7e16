"""Find what a recipe names: the data, the weights, the adapter to continue from. Looks and digests; loads nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache.fingerprint import digest_file
from cache.memo import DigestMemo
from pipeline.errors import FieldError, RecipeError
from pipeline.hub import hub_folder
from pipeline.places import Places
from pipeline.recipe import Recipe
from stages import catalogue
from stages.adapters._targets import layer_shapes, spec_rank_limit
from stages.contract import Source, Weights
from stages.errors import FilterMatchesNothing, RankTooLarge, WeightsNotFound
from stages.ingest.source import open_source
from stages.models._folder import open_folder, tensor_shapes
from stages.records import AdapterSpec


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a recipe names, by content."""

    source: Source
    weights: Weights | None
    """None while the weights are not there yet (`why_no_weights` says what brings them)."""
    why_no_weights: str = ""
    lora_checkpoint: Path | None = None
    lora_digest: str | None = None
    why_no_source: str = ""
    """Why the data is not known yet: it lies at an address that plan does not fetch."""
    why_no_lora: str = ""


def find(
    recipe: Recipe,
    *,
    make: bool,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[..., None] = lambda done, total, note="": None,
) -> Found:
    """Look at the data and the weights of a recipe.

    Args:
        make: fetch addresses, and write what ships with the project (tiny-base) into the store if it is not there
            yet; plan does neither.
        say, progress: told about what is fetched.

    Raises:
        SourceNotFound, FetchFailed, WeightsNotFound: with what to type next.
    """
    memo = DigestMemo(recipe.store / "digests.sqlite") if make else ReadOnlyMemo(recipe.store / "digests.sqlite")
    places = Places(recipe=recipe, memo=memo, make=make, say=say, progress=progress)
    path, why_no_source = places.audio()
    unknown = Source(path=Path(), kind="unknown", fingerprint="", members=())
    source = open_source(path, memo, recipe.ingest_params().limits) if path else unknown
    folder, why = weights_folder(recipe, make=make)
    weights = open_folder(recipe.model.name, folder, memo) if folder else None
    if weights is not None:
        check_model(recipe, weights)
        check_adapter(recipe, weights)
    lora, why_no_lora = places.lora()
    return Found(
        source=source,
        weights=weights,
        why_no_weights=why,
        lora_checkpoint=lora,
        lora_digest=digest_file(lora) if lora else None,
        why_no_source=why_no_source,
        why_no_lora=why_no_lora,
    )


class ReadOnlyMemo(DigestMemo):
    """Recalls and adds nothing: what a plan looks with."""

    def remember(self, path: Path, what: str, value: str) -> None:
        """Leave the store as it is."""
        return


def weights_folder(recipe: Recipe, *, make: bool) -> tuple[Path | None, str]:
    """The checkpoint folder, or None with what will bring it."""
    if recipe.weights is not None:
        return recipe.weights, ""
    spec = recipe.model
    if spec.repo is None:
        return _shipped_folder(recipe, make=make)
    folder = hub_folder(spec, download=make)
    return folder, "" if folder else f"the weights of {spec.name} are downloaded from {spec.repo} on first use"


def _shipped_folder(recipe: Recipe, *, make: bool) -> tuple[Path | None, str]:
    family = next(
        module
        for module in (catalogue.load("models", name) for name in catalogue.names("models"))
        if recipe.model in module.MODELS
    )
    folder: Path = recipe.store / "shared" / "weights" / family.folder_name()
    if not (folder / "model_config.json").is_file():
        if not make:
            return None, f"the weights of {recipe.model.name} are made on first use"
        family.make(folder)
    return folder, ""


def check_model(recipe: Recipe, weights: Weights) -> None:
    """Refuse a folder that plainly holds another model than the one named."""
    spec, config = recipe.model, weights.config
    autoencoder = config["model"]["pretransform"]["config"]
    facts = {
        "sample rate": (int(config["sample_rate"]), spec.sample_rate_hz),
        "downsampling ratio": (int(autoencoder["downsampling_ratio"]), spec.downsampling_ratio),
        "latent channels": (int(config["model"]["io_channels"]), spec.latent_channels),
        "sample size": (int(config["sample_size"]), spec.max_samples),
    }
    wrong = [
        f"{name} {found} where {spec.name} has {wanted}" for name, (found, wanted) in facts.items() if found != wanted
    ]
    if wrong and spec.repo is not None:
        raise WeightsNotFound(
            str(weights.folder), "; ".join(wrong), f"Point --weights at the folder of {spec.repo}, or change --model."
        )


def check_adapter(recipe: Recipe, weights: Weights) -> None:
    """Refuse a rank or a pattern that the model's layers do not allow, from the checkpoint's header alone.

    Raises:
        RecipeError: naming the field, as for any other value out of range.
    """
    values = recipe.values
    spec = AdapterSpec(
        kind=values["adapter_type"],
        rank=values["rank"],
        alpha=values["alpha"] or float(values["rank"]),
        include=values["include"],
        exclude=values["exclude"],
    )
    try:
        spec_rank_limit(spec, layer_shapes(tensor_shapes(weights.folder / "model.safetensors")))
    except RankTooLarge as error:
        raise RecipeError([FieldError(loc=("rank",), type="less_than_equal", msg=str(error))]) from error
    except FilterMatchesNothing as error:
        raise RecipeError([FieldError(loc=(error.field,), type="matches_nothing", msg=str(error))]) from error
