"""Include and exclude patterns, which decide what layers get an adapter. Light: standard library only.

A pattern is stripped of blanks; every `[a-b]` in it expands to each whole number from a to b, counted down when b is
below a, and several brackets give every combination. It matches a name that contains one of the results; case matters.
Hence `layers.1` also matches layers 10 to 19, and `layers[0-11]` matches nothing: names are written `layers.7.`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from itertools import product

from stages.errors import FilterMatchesNothing

_RANGE = re.compile(r"\[(\d+)-(\d+)\]")
_MAX_EXPANSIONS = 10_000


def expansions(pattern: str) -> list[str]:
    """The plain substrings a pattern expands to: `a.[2-0].` gives `a.2.`, `a.1.`, `a.0.`.

    Raises:
        ValueError: the ranges expand to more than ten thousand substrings.
    """
    # Splitting by a pattern with two groups gives text, first, last, text, first, last, ..., text.
    pieces = _RANGE.split(pattern.strip())
    texts, firsts, lasts = pieces[::3], map(int, pieces[1::3]), map(int, pieces[2::3])
    ranges = [range(a, b + 1) if a <= b else range(a, b - 1, -1) for a, b in zip(firsts, lasts, strict=True)]
    count = 1
    for numbers in ranges:
        count *= len(numbers)
    if count > _MAX_EXPANSIONS:
        raise ValueError(f"the ranges of {pattern!r} stand for {count:,} substrings, above {_MAX_EXPANSIONS:,}")
    combinations = product(*(map(str, numbers) for numbers in ranges))
    return ["".join(_interleaved(texts, numbers)) for numbers in combinations]


def _interleaved(texts: Sequence[str], numbers: Sequence[str]) -> Iterator[str]:
    for text, number in zip(texts, numbers, strict=False):
        yield from (text, number)
    yield texts[-1]


def matching(names: Collection[str], pattern: str) -> list[str]:
    """Names that contain one of the pattern's expansions, in their order."""
    parts = expansions(pattern)
    return [name for name in names if any(part in name for part in parts)]


def filtered(names: Collection[str], include: Sequence[str] | None, exclude: Sequence[str] | None) -> list[str]:
    """Names that an include pattern matches (None: all; an empty list: none) and no exclude pattern does, in order."""
    wanted = set(names) if include is None else {name for pattern in include for name in matching(names, pattern)}
    unwanted = {name for pattern in exclude or () for name in matching(names, pattern)}
    return [name for name in names if name in wanted and name not in unwanted]


def selected(names: Collection[str], include: Sequence[str] | None, exclude: Sequence[str] | None) -> list[str]:
    """The same as `filtered`, for patterns a user gave: one without effect, or a selection left empty, is an error.

    Raises:
        FilterMatchesNothing: a pattern matches no name at all, or no name is left; lists near names.
    """
    for field, patterns in (("include", include), ("exclude", exclude)):
        dead = [pattern for pattern in patterns or () if not matching(names, pattern)]
        if dead:
            near = [name for pattern in dead for name in near_names(pattern, names)]
            raise FilterMatchesNothing(field, dead, list(dict.fromkeys(near)))
    chosen = filtered(names, include, exclude)
    if not chosen:
        if include is not None and not include:
            raise FilterMatchesNothing("include", (), list(names)[:5])
        patterns = (*(include or ()), *(exclude or ()))
        raise FilterMatchesNothing("include and exclude together", patterns, list(names)[:5])
    return chosen


def near_names(pattern: str, names: Collection[str], count: int = 5) -> list[str]:
    """Names with a part that resembles the pattern, nearest first; case is ignored."""
    holders: dict[str, str] = {}
    for name in names:
        for part in _dotted_parts(name.lower()):
            holders.setdefault(part, name)
    found: dict[str, None] = {}
    for part in expansions(pattern)[:3]:
        similar = get_close_matches(part.lower().strip("."), holders, n=3 * count, cutoff=0.5)
        found.update((holders[one], None) for one in similar)
    return list(found)[:count] or list(names)[:count]


def _dotted_parts(name: str) -> Iterator[str]:
    """`a.b.c` gives a, a.b, a.b.c, b, b.c, c."""
    pieces = name.split(".")
    for start in range(len(pieces)):
        for stop in range(start + 1, len(pieces) + 1):
            yield ".".join(pieces[start:stop])
