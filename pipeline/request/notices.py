"""Notices about a valid request that is not carried out to the letter. Light: standard library only."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.request.recipe import Recipe


def notices(recipe: Recipe) -> Iterator[str]:
    """One line per field whose value is not used as given."""
    seconds, native = recipe.values["duration"], recipe.model.max_seconds
    if seconds is not None and seconds > native:
        yield f"duration {seconds:g} s is beyond the model's native {native:.1f} s: {native:.1f} s is used"
