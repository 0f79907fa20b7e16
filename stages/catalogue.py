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
    """A family whose models have no hub repository: the project makes their weights itself."""

    TENSOR_DIGESTS: Mapping[str, str]
    """What `stages.models.checkpoint_folder.file_digest` gives for each file of tensors, by path in the folder."""
    TEXT_FILES: Mapping[str, str | None]
    """Digest of each JSON file of the text encoder, by path in the folder; None where it varies."""

    def folder_name(self) -> str:
        """Name of the checkpoint folder among the store's shared weights."""
        ...

    def make(self, folder: Path) -> None:
        """Write the checkpoint folder, the same bytes every time."""
        ...


def families() -> list[Family]:
    """Every model family."""
    return [cast(Family, load("models.families", name)) for name in names("models.families")]


def family_of(model: str) -> Family:
    """The family of a base model. Raises StopIteration: no family declares it."""
    return next(family for family in families() if model in (spec.name for spec in family.MODELS))


def bundled_families() -> list[BundledFamily]:
    """Families whose weights the project makes itself."""
    return [cast(BundledFamily, family) for family in families() if hasattr(family, "make")]


def models() -> dict[str, ModelSpec]:
    """Every base model of every family, by name."""
    return {spec.name: spec for family in families() for spec in family.MODELS}
