"""What `bench` is asked to measure: every value of every axis checked before torch is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import FieldError, RecipeError
from pipeline.request.fields import FIELDS
from stages import catalogue
from stages.errors import RankTooLarge
from stages.precision import PRECISIONS

if TYPE_CHECKING:
    from stages.bench.run import Grid

SWITCH = {"on": True, "off": False}


LIMITS: Mapping[str, Mapping[str, int]] = {
    field.name: field.limits for field in FIELDS if field.name in ("rank", "batch_size", "threads")
}
"""As a training has them."""
_AT_LEAST_ONE = {"ge": 1}


def checked_grid(axes: Mapping[str, Sequence[Any]], target: Path | None = None) -> Grid:
    """The grid of these axes, by the names of their flags.

    Args:
        target: the file that the figures will be written to.

    Raises:
        RecipeError: with every value that cannot be measured, and a file that cannot be written.
    """
    errors = [error for name, values in axes.items() for value in values for error in _faults(name, value)]
    errors += [] if target is None else _target_faults(target)
    if errors:
        raise RecipeError(errors)
    grid = _grid(axes)
    if errors := list(_rank_faults(grid)):
        raise RecipeError(errors)
    return grid


def _grid(axes: Mapping[str, Sequence[Any]]) -> Grid:
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


def _rank_faults(grid: Grid) -> Iterator[FieldError]:
    """A rank that the layers of one of the models do not allow one of the kinds."""
    from stages.bench.cases import check_rank  # deferred: torch

    for case in {(case.model, case.adapter_type): case for case in grid.cases()}.values():
        try:
            check_rank(case)
        except RankTooLarge as error:
            message = f"{str(error).removeprefix('rank ')} (of {case.model}, {case.adapter_type})"
            yield FieldError(loc=("rank",), type="less_than_equal", msg=message)


def _target_faults(target: Path) -> list[FieldError]:
    """Found by opening it as it will be; what is there stays as it is."""
    was_there = target.exists()
    try:
        target.open("ab").close()
    except OSError as error:
        why = f"cannot be written ({error.strerror or error}): name a file in a folder that is there"
        return [FieldError(loc=("out",), type="not_writable", msg=why, input=str(target))]
    if not was_there:
        target.unlink()
    return []


def _number_faults(name: str, value: int) -> list[FieldError]:
    limits = LIMITS.get(name, _AT_LEAST_ONE)
    if value < limits["ge"]:
        message = f"must be at least {limits['ge']}"
        return [FieldError(loc=(name,), type="greater_than_equal", msg=message, input=value)]
    if value > limits.get("le", value):
        message = f"must be at most {limits['le']}"
        return [FieldError(loc=(name,), type="less_than_equal", msg=message, input=value)]
    return []


def _faults(name: str, value: Any) -> list[FieldError]:
    if isinstance(value, int):
        return _number_faults(name, value)
    choices = {
        "model": lambda: sorted(catalogue.models()),
        "adapter_type": catalogue.adapter_kinds,
        "base_precision": lambda: list(PRECISIONS),
    }.get(name, lambda: list(SWITCH))()
    if value in choices:
        return []
    return [FieldError(loc=(name,), type="not_a_choice", msg=f"must be one of {', '.join(choices)}", input=value)]
