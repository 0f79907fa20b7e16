"""The command that asks for a request again, for people to copy. Light: standard library only."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pipeline.request.fields import FIELDS
from pipeline.request.paths import is_url
from pipeline.request.recipe import Recipe
from stages.field import Field

REQUEST = "request"
"""Key of a receipt's environment: what was asked for, with its `command`."""
LONGEST_DATA = 300
"""Longer data is a data: URL, which nobody types."""


def command_line(recipe: Recipe, command: str, *, imported: bool = False) -> str:
    """Such as `sa3-trainer run clips.zip --model medium-base --rank 8`: every field that is not at its default.

    What may be a secret in an address (user name, password, query) is left out.

    Args:
        command: `run`, `encode` or `ingest`.
        imported: the data is a pre-encoded folder.
    """
    data = shown_data(recipe)
    words = ["sa3-trainer", command, *(["--import"] if imported else []), data]
    for field in FIELDS:
        if (value := recipe.values[field.name]) != field.default and not (imported and field.name == "pre_encode"):
            words += _flag(field, value)
    return shlex.join(words)


def shown_data(recipe: Recipe) -> str:
    """The data as it was given, without what may be a secret."""
    return "DATA" if len(recipe.source) > LONGEST_DATA else without_secrets(recipe.source)


def without_secrets(address: str) -> str:
    """An address without user name, password and query; anything else as it is."""
    if not is_url(address):
        return address
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _flag(field: Field, value: Any) -> Iterator[str]:
    name = field.name.replace("_", "-")
    if isinstance(value, bool):
        yield f"--{name}" if value else f"--no-{name}"
        return
    yield f"--{name}"
    yield ",".join(value) if isinstance(value, list | tuple) else without_secrets(str(value))
