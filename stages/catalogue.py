"""Lists adapter kinds and model families by directory: a new one is one file, found without importing it.

Light: standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, Protocol, cast

from stages.records import ModelSpec

_STAGES = Path(__file__).parent


def names(package: str) -> list[str]:
    """Names of the modules of `stages.<package>`, without importing them: `--help` must not load torch."""
    return sorted(module.name for module in iter_modules([str(_STAGES.joinpath(*package.split(".")))]))


def load(package: str, name: str) -> ModuleType:
    """Imports one module of `stages.<package>`."""
    return import_module(f"stages.{package}.{name}")


def adapter_kinds() -> list[str]:
    """Adapter kinds as users type them: `dora_rows.py` is `dora-rows`."""
    return [name.replace("_", "-") for name in names("adapters.kinds")]


class Family(Protocol):
    """What a file of `models/families` declares."""

    MODELS: tuple[ModelSpec, ...]

    def model_config(self, model: str) -> dict[str, Any]:
        """The model_config.json of one of MODELS."""
        ...


class BundledFamily(Family, Protocol):
    """A family whose models have no hub repository: their weights ship with the project."""

    FOLDER: Path
    """The checkpoint folder, in the package."""
    EARLIER_WEIGHTS: Mapping[str, frozenset[str]]
    """Digests of the components of weights that shipped before, by a name that tells them apart."""


def families() -> list[Family]:
    """Every model family."""
    return [cast(Family, load("models.families", name)) for name in names("models.families")]


def family_of(model: str) -> Family:
    """The family of a base model. Raises StopIteration: no family declares it."""
    return next(family for family in families() if model in (spec.name for spec in family.MODELS))


def bundled_families() -> list[BundledFamily]:
    """Families whose weights ship with the project."""
    return [cast(BundledFamily, family) for family in families() if hasattr(family, "FOLDER")]


def bundled_folder(spec: ModelSpec) -> Path:
    """The checkpoint folder of a model that ships with the project. Raises StopIteration: it comes from the hub."""
    return next(family.FOLDER for family in bundled_families() if spec in family.MODELS)


def earlier_weights(components: Mapping[str, str]) -> str | None:
    """The name of earlier shipped weights that a result was made with; None if it was made with others.

    Args:
        components: digests of the weights that were read, by component.
    """
    known = [entry for family in bundled_families() for entry in family.EARLIER_WEIGHTS.items()]
    return next((name for name, digests in known if digests & {*components.values()}), None)


def models() -> dict[str, ModelSpec]:
    """Every base model of every family, by name."""
    return {spec.name: spec for family in families() for spec in family.MODELS}
