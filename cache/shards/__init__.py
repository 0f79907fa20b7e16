"""Latent formats, one per file of this folder. Light: listing the formats imports none of them."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, cast

from cache.errors import UnknownFormat

if TYPE_CHECKING:
    from cache.shard_format import ShardFormat


def formats() -> list[str]:
    """Names of the formats as users type them, without importing them."""
    return sorted(module.name for module in iter_modules(__path__))


def load(name: str) -> ShardFormat:
    """Imports one format.

    Raises:
        UnknownFormat: lists the formats.
    """
    if name not in formats():
        raise UnknownFormat(name, formats())
    return cast("ShardFormat", import_module(f"cache.shards.{name}"))
