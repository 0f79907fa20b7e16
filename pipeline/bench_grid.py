"""The grid of cases that `bench` measures, validated before torch is loaded. Light: standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import FieldError, RecipeError
from pipeline.request.fields import FIELDS
from stages.errors import RankTooLarge

if TYPE_CHECKING:
    from stages.bench.run import Grid

SWITCH = {"on": True, "off": False}
_SHARED = ("model", "adapter_type", "base_precision", "rank", "batch_size", "threads")
_FIELDS = {field.name: field for field in FIELDS if field.name in _SHARED}
"""Axes with the choices and limits of a training's fields; the others are switches and positive numbers."""


def checked_grid(axes: Mapping[str, Sequence[Any]], target: Path | None = None) -> Grid:
    """The grid of all combinations of these values, by the names of their flags.

    Args:
        target: the file that the results will be written to.

    Raises:
        RecipeError: listing every invalid value, and the file if it cannot be written.
    """
    errors = [error for name, values in axes.items() for value in values for error in _value_errors(name, value)]
    errors += [] if target is None else _target_errors(target)
    if errors:
        raise RecipeError(errors)
    grid = _grid(axes)
    if errors := list(_rank_errors(grid)):
        raise RecipeError(errors)
    return grid


def _grid(axes: Mapping[str, Sequence[Any]]) -> Grid:
    from stages.bench.run import Grid  # deferred: torch

    return Grid(
        models=axes["model"],
        frames=axes["frames"],
        adapter_types=axes["adapter_type"],
        precisions=[_FIELDS["base_precision"].values[value] for value in axes["base_precision"]],
        batch_sizes=axes["batch_size"],
        checkpointing=[SWITCH[value] for value in axes["gradient_checkpointing"]],
        deterministic=[SWITCH[value] for value in axes["deterministic"]],
        rank=axes["rank"][0],
        steps=axes["steps"][0],
    )


def _rank_errors(grid: Grid) -> Iterator[FieldError]:
    """One error per model and adapter kind whose layers do not allow the rank."""
    from stages.bench.cases import check_rank  # deferred: torch

    for case in {(case.model, case.adapter_type): case for case in grid.cases()}.values():
        try:
            check_rank(case)
        except RankTooLarge as error:
            message = f"{str(error).removeprefix('rank ')} (for {case.model} with {case.adapter_type})"
            yield FieldError(loc=("rank",), type="less_than_equal", msg=message)


def _target_errors(target: Path) -> list[FieldError]:
    """Whether the file can be opened for writing; an existing file is left unchanged, and none is left behind."""
    existed = target.exists()
    try:
        target.open("ab").close()
    except OSError as error:
        why = f"cannot be written ({error.strerror or error}): name a file in a folder that exists"
        return [FieldError(loc=("out",), type="not_writable", msg=why, input=str(target))]
    if not existed:
        target.unlink()
    return []


def _number_errors(name: str, value: int) -> list[FieldError]:
    limits = _FIELDS[name].limits if name in _FIELDS else {"ge": 1}
    if value < limits["ge"]:
        message = f"must be at least {limits['ge']}"
        return [FieldError(loc=(name,), type="greater_than_equal", msg=message, input=value)]
    if value > limits.get("le", value):
        message = f"must be at most {limits['le']}"
        return [FieldError(loc=(name,), type="less_than_equal", msg=message, input=value)]
    return []


def _value_errors(name: str, value: Any) -> list[FieldError]:
    if isinstance(value, int):
        return _number_errors(name, value)
    choices = _FIELDS[name].values if name in _FIELDS else SWITCH
    if value in choices:
        return []
    return [FieldError(loc=(name,), type="not_a_choice", msg=f"must be one of {', '.join(choices)}", input=value)]
