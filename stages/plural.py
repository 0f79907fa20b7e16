"""Counts with singular and plural nouns, sizes and times, for messages. Light: standard library only."""

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


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole // 60 % 60:02d} min"
