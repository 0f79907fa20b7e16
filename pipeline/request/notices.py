"""Notices about a valid request that is not carried out to the letter. Light: standard library only."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.request.recipe import Recipe
from stages.contract import Source
from stages.ingest.captions.pairing import other_file_notes
from stages.ingest.faults import fault_lines


def notices(recipe: Recipe) -> Iterator[str]:
    """One line per field whose value is not used as given."""
    seconds, native = recipe.values["duration"], recipe.model.max_seconds
    if seconds is not None and seconds > native:
        yield f"duration {seconds:g} s is beyond the model's native {native:.1f} s: {native:.1f} s is used"


def data_notices(source: Source) -> Iterator[str]:
    """Lines about the files beside the clips, which are not used; said at every run, as no result holds them."""
    yield from fault_lines("warning", other_file_notes(source.others))
