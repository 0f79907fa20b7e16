"""What a person should know of a request that is right, whether or not anything is left to do."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.request.recipe import Recipe


def remarks(recipe: Recipe) -> Iterator[str]:
    """One line per thing that is done otherwise than the words of the request say."""
    seconds, native = recipe.values["duration"], recipe.model.max_seconds
    if seconds is not None and seconds > native:
        yield f"duration {seconds:g} s is beyond the model's native {native:.1f} s: {native:.1f} s is used"
