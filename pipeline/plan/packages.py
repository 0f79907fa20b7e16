"""Whether the optional packages that a training needs are installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from pipeline.errors import FieldError, RecipeError
from pipeline.plan.stage_run import Plan, State
from pipeline.request.recipe import Recipe

_PACKAGES = {
    "base_quantization": ("none", "torchao", "torchao"),
    "optimizer": ("adamw", "pytorch_optimizer", "pytorch-optimizer"),
}
"""Of a field: the value that needs no package, and what the others need, as it is imported and as it is installed."""


def check_packages(recipe: Recipe, plan: Plan) -> None:
    """Refuse a training that needs packages which are not installed; one that is finished needs none.

    Raises:
        RecipeError: naming each field.
    """
    trains = any(run.stage.name == "train" and run.state is not State.HIT for run in plan.runs)
    if trains and (errors := list(_package_errors(recipe))):
        raise RecipeError(errors)


def _package_errors(recipe: Recipe) -> Iterator[FieldError]:
    for field, (plain, module, package) in _PACKAGES.items():
        asked = recipe.values[field]
        if asked != plain and find_spec(module) is None:
            message = f"{asked} needs the package {package}: `pip install {package}`, or ask for {plain}"
            yield FieldError(loc=(field,), type="package_missing", msg=message, input=asked)
