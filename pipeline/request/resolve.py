"""Resolves the data, the weights and the adapter file of a recipe, with their digests. Light: no arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cache.digest_cache import DigestCache
from cache.fingerprint import digest_file
from pipeline.request.hub import hub_folder
from pipeline.request.locate import InputLocator
from pipeline.request.preflight import check_request
from pipeline.request.recipe import Recipe
from stages import catalogue
from stages.contract import Source, Weights
from stages.ingest.source.dataset_files import clip_files
from stages.ingest.source.listing import open_source
from stages.models.bundled_weights import check_bundled_weights
from stages.models.checkpoint_folder import open_folder
from stages.records import ModelSpec


@dataclass(frozen=True, kw_only=True)
class ResolvedInputs:
    """The data, weights and adapter file that a recipe names, identified by content."""

    source: Source
    weights: Weights | None
    """None while they are not on this machine yet."""
    why_no_weights: str = ""
    """Why, and that they are downloaded."""
    lora_checkpoint: Path | None = None
    lora_digest: str | None = None
    why_no_source: str = ""
    """Why `source` is unknown: it is a URL, and plan downloads nothing."""
    why_no_lora: str = ""
    """Likewise for the adapter file."""


def resolve_inputs(
    recipe: Recipe,
    *,
    fetch: bool,
    weights: bool = True,
    imported: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[..., None] = lambda done, total, note="", **figures: None,
    phase: Callable[[str], None] = lambda what: None,
) -> ResolvedInputs:
    """Find and digest the data, the weights and the adapter file of a recipe, and check that they go together.

    Args:
        fetch: download URLs; plan does not.
        weights: off where no stage reads them, so that a dataset can be checked without them.
        imported: the data is a pre-encoded folder, all of whose files are data.
        say, progress: called about downloads.
        phase: called with what is being read.

    Raises:
        SourceNotFound, FetchFailed, WeightsNotFound: with what to type next.
        RecipeError: the recipe does not fit the model or the adapter file.
    """
    digest_cache = DigestCache(recipe.store / "digests.sqlite", read_only=not fetch)  # plan leaves the store as it is
    locator = InputLocator(recipe=recipe, digest_cache=digest_cache, fetch=fetch, say=say, progress=progress)
    path, why_no_source = locator.audio()
    unknown = Source(path=Path(), kind="unknown", fingerprint="", members=())
    params = recipe.ingest_params()
    if path:
        phase(f"reading {_described(path)}")
    source = open_source(path, digest_cache, params.limits) if path else unknown
    if path and not imported:
        source = clip_files(source, templated=params.caption_template is not None, table=params.captions)
    weights_phase = f"reading the weights of {recipe.model.name}" if weights else ""
    from_hub = recipe.weights is None and recipe.model.repo is not None
    phase("" if from_hub else weights_phase)  # the hub's library shows its own progress
    folder, why = weights_folder(recipe, fetch=fetch, digest_cache=digest_cache) if weights else (None, "")
    phase(weights_phase)
    opened = open_folder(recipe.model.name, folder, digest_cache) if folder else None
    lora, why_no_lora = locator.lora()
    check_request(recipe, opened, lora)
    return ResolvedInputs(
        source=source,
        weights=opened,
        why_no_weights=why,
        lora_checkpoint=lora,
        lora_digest=digest_file(lora) if lora else None,
        why_no_source=why_no_source,
        why_no_lora=why_no_lora,
    )


def _described(path: Path) -> str:
    """`412 MB of clips`; a folder, whose size is not known before it is listed, by its name."""
    return f"{path.stat().st_size / 1e6:,.0f} MB of clips" if path.is_file() else path.name


class WeightsWanted(Protocol):
    """What finding weights needs of a request."""

    @property
    def model(self) -> ModelSpec: ...
    @property
    def weights(self) -> Path | None: ...


def weights_folder(
    recipe: WeightsWanted, *, fetch: bool, digest_cache: DigestCache | None = None
) -> tuple[Path | None, str]:
    """The checkpoint folder; None, with the reason, while it is not on this machine.

    Raises:
        WeightsNotFound: those that ship with the project are damaged.
    """
    if recipe.weights is not None:
        return recipe.weights, ""
    spec = recipe.model
    if spec.repo is None:
        folder = catalogue.bundled_folder(spec)
        check_bundled_weights(folder, digest_cache.digest if digest_cache else digest_file)
        return folder, ""
    downloaded = hub_folder(spec, download=fetch)
    return downloaded, "" if downloaded else f"the weights of {spec.name} are downloaded from {spec.repo} on first use"


def are_to_be_downloaded(recipe: WeightsWanted) -> bool:
    """Whether the weights of a request are not on this machine yet, and come over the network."""
    spec = recipe.model
    return recipe.weights is None and spec.repo is not None and hub_folder(spec, download=False) is None
