"""Counts with singular and plural nouns, sizes and times, for messages. Light: standard library only."""

from __future__ import annotations

from datetime import datetime


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
    """Bytes in a decimal unit, as disks and file managers count: `512 B`, `518 kB`, `4.6 MB`, `25.8 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        decimals = 0 if unit == "B" or (unit == "kB" and count >= 10) else 1
        shown = f"{count:,.{decimals}f}"
        if unit == "GB" or float(shown.replace(",", "")) < 1000:
            return f"{shown} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def moment(stamp: str) -> str:
    """A time in ISO 8601 as the clock on the wall shows it: `2026-11-30 06:18`."""
    try:
        return datetime.fromisoformat(stamp).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return stamp


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole // 60 % 60:02d} min"
