"""A catalogue is a directory listing: a new model family or adapter kind is one file, and nothing else changes."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from stages.records import ModelSpec

_STAGES = Path(__file__).parent


def names(room: str) -> list[str]:
    """Modules of `stages/<room>` by name, without importing them: `--help` must not load torch."""
    return sorted(module.name for module in iter_modules([str(_STAGES.joinpath(*room.split(".")))]))


def load(room: str, name: str) -> ModuleType:
    """Import one member of a room."""
    return import_module(f"stages.{room}.{name}")


def adapter_kinds() -> list[str]:
    """Adapter kinds as users write them: `dora_rows.py` is `dora-rows`."""
    return [name.replace("_", "-") for name in names("adapters.kinds")]


def models() -> dict[str, ModelSpec]:
    """Every base model of every family, by name."""
    return {spec.name: spec for name in names("models.families") for spec in load("models.families", name).MODELS}
