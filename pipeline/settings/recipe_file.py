"""Reads a recipe: a TOML file of fields, or the JSON that a training wrote beside its adapter. Light: no arrays."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import FieldError, RecipeError
from pipeline.settings.other_names import canonical
from stages.text import NotText, decoded

_ELSEWHERE = ("~", "http://", "https://", "file://", "data:")
"""What a value begins with that is no path seen from a folder."""

REQUEST = "request"
"""Key of an adapter's JSON that holds the fields of its request, except paths."""


def recipe_values(file: Path, path_fields: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a recipe file by their full names, not validated yet; relative paths follow the file.

    Args:
        path_fields: fields that hold a path, or an address.

    Raises:
        RecipeError: it cannot be read, or gives a field twice.
    """
    try:
        text = decoded(file.read_bytes())
        values = _json_fields(file, text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except OSError as error:
        raise file_error(file, "file_missing", f"cannot be read ({error.strerror})") from error
    except NotText as error:
        raise file_error(file, "toml_invalid", f"is {error}: save it as UTF-8 text") from error
    except ValueError as error:
        raise file_error(file, "toml_invalid", f"is not valid TOML: {error}") from error
    named = _with_full_names(file, values)
    return named | {name: _beside(file, named[name]) for name in path_fields if name in named}


def _json_fields(file: Path, text: str) -> dict[str, Any]:
    """The request in an adapter's JSON, or the fields themselves."""
    document = json.loads(text)
    if isinstance(document.get(REQUEST), dict):
        return dict(document[REQUEST])
    if "format_version" in document:
        raise file_error(file, "no_request", "was written by a version that did not keep the request")
    return document


def _with_full_names(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, value in values.items():
        if canonical(name) in named:
            raise file_error(file, "given_twice", f"gives {canonical(name)} twice: {name} is the same field")
        named[canonical(name)] = value
    return named


def _beside(file: Path, value: Any) -> Any:
    """A relative path seen from the folder of the recipe; addresses, absolute paths and `~` as they are."""
    if not isinstance(value, str) or not value or value.startswith(_ELSEWHERE):
        return value
    return str(file.parent / value)


def file_error(file: Path, type: str, msg: str) -> RecipeError:
    """The error of a whole recipe."""
    return RecipeError([FieldError(loc=("recipe",), type=type, msg=msg, input=str(file))])
