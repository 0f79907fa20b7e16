"""The clips and prompts of the data as it is now, and those of an earlier ingest. Light: pyarrow is imported on use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cache.receipt import Receipt
from cache.store import Store
from pipeline.request.recipe import Recipe
from pipeline.request.resolve import ResolvedInputs
from stages.contract import Member
from stages.ingest.captions.pairing import pair
from stages.ingest.captions.prompts import read_prompts
from stages.ingest.file_types import READABLE, stem, suffix
from stages.ingest.source.archive import close_archives
from stages.records import Clip


@dataclass(frozen=True, kw_only=True)
class CurrentClip:
    """A clip as it is in the data now."""

    clip_id: str
    digest: str
    crop_start: int = 0
    prompt: str | None = None
    """None where the caption is missing or faulty."""


def clips_of_data(recipe: Recipe, resolved: ResolvedInputs) -> list[CurrentClip]:
    """Every clip, from the file names and captions of the data."""
    audio: list[Member] = [one for one in resolved.source.members if suffix(one.name) in READABLE and one.digest]
    prompts = current_prompts(recipe, resolved)
    clips = (CurrentClip(clip_id=stem(m.name), digest=str(m.digest), prompt=prompts.get(m.name)) for m in audio)
    return sorted(clips, key=lambda one: one.clip_id)


def current_prompts(recipe: Recipe, resolved: ResolvedInputs) -> dict[str, str]:
    """The prompts that ingest would make from the captions as they are now, by audio file; faulty ones left out."""
    params = recipe.ingest_params()
    pairing = pair(
        resolved.source.members,
        templated=params.caption_template is not None,
        one_for_all=params.caption is not None,
        table=params.captions,
        others=resolved.source.others,
    )
    try:
        made = read_prompts(resolved.source, pairing, params).by_audio
    finally:
        close_archives()
    return {name: prompt.text for name, prompt in made.items()}


def manifest_rows(store: Store, receipt: Receipt) -> Iterator[Clip]:
    """The clips of a finished ingest, one batch in memory at a time."""
    from cache.manifest import iter_rows  # deferred: pyarrow

    return iter_rows(store.directory("ingest", receipt.fingerprint) / "manifest.parquet", Clip)
