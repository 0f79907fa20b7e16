"""Whether Python and the optional packages are as a training needs them. Light: standard library only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec

from pipeline.errors import DocstringsStripped, FieldError, RecipeError
from pipeline.plan.stage_run import Plan, State
from pipeline.request.fields import FIELDS
from pipeline.request.recipe import Recipe


def check_interpreter() -> None:
    """Raises: DocstringsStripped where Python removes docstrings, which transformers reads while it is imported."""
    if sys.flags.optimize > 1:
        raise DocstringsStripped


def check_packages(recipe: Recipe, plan: Plan) -> None:
    """Refuse a training that needs packages which are not installed; one that is finished needs none.

    Raises:
        RecipeError: naming each field.
    """
    trains = any(run.stage.name == "train" and run.state is not State.HIT for run in plan.runs)
    if trains and (errors := list(_package_errors(recipe))):
        raise RecipeError(errors)


def _package_errors(recipe: Recipe) -> Iterator[FieldError]:
    # Ingest checks its own: which packages it needs depends on the clips that are not prepared yet.
    for field in sorted(FIELDS, key=lambda field: field.name):
        value = recipe.values[field.name]
        if field.stage != "train" or field.needs is None or value == field.default:
            continue
        if find_spec(field.needs.module) is None:
            package = field.needs.package
            message = f"{value} needs the package {package}: `pip install {package}`, or ask for {field.default}"
            yield FieldError(loc=(field.name,), type="package_missing", msg=message, input=value)
