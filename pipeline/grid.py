"""What `bench` is asked to measure: every value of every axis checked before torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import FieldError, RecipeError
from stages import catalogue
from stages.train.stage import PRECISIONS

if TYPE_CHECKING:
    from stages.bench.run import Grid

SWITCH = {"on": True, "off": False}


def checked_grid(axes: Mapping[str, Sequence[Any]]) -> Grid:
    """The grid of these axes, by the names of their flags.

    Raises:
        RecipeError: with every value that cannot be measured.
    """
    errors = [error for name, values in axes.items() for value in values for error in _faults(name, value)]
    if errors:
        raise RecipeError(errors)
    from stages.bench.run import Grid  # deferred: torch

    return Grid(
        models=axes["model"],
        frames=axes["frames"],
        adapter_types=axes["adapter_type"],
        precisions=[PRECISIONS[value] for value in axes["base_precision"]],
        batch_sizes=axes["batch_size"],
        checkpointing=[SWITCH[value] for value in axes["gradient_checkpointing"]],
        deterministic=[SWITCH[value] for value in axes["deterministic"]],
        rank=axes["rank"][0],
        steps=axes["steps"][0],
    )


def _faults(name: str, value: Any) -> list[FieldError]:
    if isinstance(value, int):
        return [] if value >= 1 else [FieldError(loc=(name,), type="too_small", msg="must be at least 1", input=value)]
    choices = {
        "model": lambda: sorted(catalogue.models()),
        "adapter_type": catalogue.adapter_kinds,
        "base_precision": lambda: list(PRECISIONS),
    }.get(name, lambda: list(SWITCH))()
    if value in choices:
        return []
    return [FieldError(loc=(name,), type="not_a_choice", msg=f"must be one of {', '.join(choices)}", input=value)]
