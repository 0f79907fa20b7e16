"""Find what a recipe names: the data, the weights, the adapter to continue from. Looks and digests; loads nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache.digest_cache import DigestCache
from cache.fingerprint import digest_file, fingerprint
from cache.store import Store
from pipeline.request.hub import hub_folder
from pipeline.request.locate import Places
from pipeline.request.preflight import check_request
from pipeline.request.recipe import Recipe
from stages import catalogue
from stages.contract import Source, Weights
from stages.ingest.source.listing import open_source
from stages.models.checkpoint_folder import open_folder


@dataclass(frozen=True, kw_only=True)
class ResolvedInputs:
    """The data, weights and adapter file that a recipe names, identified by content."""

    source: Source
    weights: Weights | None
    """None while the weights are not there yet (`why_no_weights` says what brings them)."""
    why_no_weights: str = ""
    lora_checkpoint: Path | None = None
    lora_digest: str | None = None
    why_no_source: str = ""
    """Why the data is not known yet: it lies at an address that plan does not fetch."""
    why_no_lora: str = ""


def resolve_inputs(
    recipe: Recipe,
    *,
    make: bool,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[..., None] = lambda done, total, note="": None,
) -> ResolvedInputs:
    """Look at the data and the weights of a recipe.

    Args:
        make: fetch addresses, and write what ships with the project (tiny-base) into the store if it is not there
            yet; plan does neither.
        say, progress: told about what is fetched.

    Raises:
        SourceNotFound, FetchFailed, WeightsNotFound: with what to type next.
    """
    digest_cache = (
        DigestCache(recipe.store / "digests.sqlite") if make else ReadOnlyDigestCache(recipe.store / "digests.sqlite")
    )
    places = Places(recipe=recipe, digest_cache=digest_cache, make=make, say=say, progress=progress)
    path, why_no_source = places.audio()
    unknown = Source(path=Path(), kind="unknown", fingerprint="", members=())
    source = open_source(path, digest_cache, recipe.ingest_params().limits) if path else unknown
    folder, why = weights_folder(recipe, make=make)
    weights = open_folder(recipe.model.name, folder, digest_cache) if folder else None
    lora, why_no_lora = places.lora()
    check_request(recipe, weights, lora)
    return ResolvedInputs(
        source=source,
        weights=weights,
        why_no_weights=why,
        lora_checkpoint=lora,
        lora_digest=digest_file(lora) if lora else None,
        why_no_source=why_no_source,
        why_no_lora=why_no_lora,
    )


def _made_once(family: catalogue.BundledFamily, folder: Path, store: Store) -> None:
    """Make a shipped checkpoint unless another process was faster; what a killed one left is cleared away first."""
    with store.lock("weights", fingerprint("shipped weights", {"folder": folder.name})):
        for left in folder.parent.glob(f"{folder.name}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        if not (folder / "model_config.json").is_file():
            family.make(folder)


class ReadOnlyDigestCache(DigestCache):
    """Recalls and adds nothing: what a plan looks with."""

    def put(self, path: Path, what: str, value: str) -> None:
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
    family = next(family for family in catalogue.bundled_families() if recipe.model in family.MODELS)
    folder: Path = recipe.store / "shared" / "weights" / family.folder_name()
    if not (folder / "model_config.json").is_file():
        if not make:
            return None, f"the weights of {recipe.model.name} are made on first use"
        _made_once(family, folder, Store(recipe.store))
    return folder, ""
