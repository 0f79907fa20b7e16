"""How counts are said to people. Light: standard library only."""

from __future__ import annotations


def counted(number: int, one: str, more: str = "") -> str:
    """`1 clip`, `1,400 clips`.

    Args:
        one: the thing in the singular.
        more: in the plural, where that is not the singular with an s.
    """
    return f"{number:,} {one if number == 1 else more or f'{one}s'}"


def are(number: int) -> str:
    """`is` or `are`."""
    return "is" if number == 1 else "are"
