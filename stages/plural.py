"""Counts with singular and plural nouns, and sizes, for messages. Light: standard library only."""

from __future__ import annotations


def pluralized(number: int, one: str, more: str = "") -> str:
    """`1 clip`, `1,400 clips`.

    Args:
        one: the noun in the singular.
        more: the plural, where it is not the singular with an s.
    """
    return f"{number:,} {one if number == 1 else more or f'{one}s'}"


def is_or_are(number: int) -> str:
    """`is` or `are`."""
    return "is" if number == 1 else "are"


def size(count: float) -> str:
    """Bytes in a readable unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
