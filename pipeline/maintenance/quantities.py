"""Parses ages such as `30d` and sizes such as `50G`. Light: standard library only."""

from __future__ import annotations

import re

from pipeline.errors import FieldError, RecipeError

_DAYS = {"h": 1 / 24, "d": 1.0, "w": 7.0}
_BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def days_of(text: str) -> float:
    """`30d`, `12h`, `2w`, or a plain number of days. Raises: RecipeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([hdw]?)", text.strip().lower())
    if not match:
        raise field_error("older_than", "age", "must be an age such as 30d, 12h or 2w", text)
    return float(match[1]) * _DAYS[match[2] or "d"]


def bytes_of(text: str) -> int:
    """`50G`, `800M`, `1.5T` (powers of 1024), or a plain number of bytes. Raises: RecipeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if not match:
        raise field_error("max_bytes", "size", "must be a size such as 50G or 800M", text)
    return int(float(match[1]) * _BYTES[match[2]])


def field_error(field: str, type: str, msg: str, given: object = None) -> RecipeError:
    """The error of one option."""
    return RecipeError([FieldError(loc=(field,), type=type, msg=msg, input=given)])
