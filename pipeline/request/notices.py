"""Notices about a valid request that is not carried out to the letter. Light: standard library only."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.request.recipe import Recipe
from stages.contract import Source
from stages.ingest.captions.pairing import other_file_notes
from stages.ingest.faults import fault_lines

PRE_ENCODE_NOTICE = (
    "every step encodes its clips anew; --pre-encode encodes each clip once, keeps it for further trainings and makes "
    "steps faster (--no-pre-encode: without this line)"
)

XS_RATE_NOTICE = (
    "{kind} learns little of a style at the default learning rate of {rate:g}, as measured on tiny-base, and more at "
    "ten times that: --learning-rate 1e-3 (docs/learning.md)"
)


def notices(recipe: Recipe, *, trains: bool) -> Iterator[str]:
    """One line per field whose value is not used as given, or whose default suits the other choices badly."""
    seconds, native = recipe.values["duration"], recipe.model.max_seconds
    if seconds is not None and seconds > native:
        yield f"duration {seconds:g} s is beyond the model's native {native:.1f} s: {native:.1f} s is used"
    if trains and not recipe.values["pre_encode"] and "pre_encode" not in recipe.chosen:
        yield PRE_ENCODE_NOTICE
    kind = recipe.values["adapter_type"]
    if trains and kind.endswith("-xs") and "learning_rate" not in recipe.chosen:
        yield XS_RATE_NOTICE.format(kind=kind, rate=recipe.values["learning_rate"])


def data_notices(source: Source) -> Iterator[str]:
    """Lines about the files beside the clips, which are not used; said at every run, as no result holds them."""
    yield from fault_lines("warning", other_file_notes(source.others))
