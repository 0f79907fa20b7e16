"""Captions made of what is known about a clip: a template over keys. Light: standard library only.

A key is looked up in the JSON file beside the audio, then in the audio's own tags; `{caption}` is the sibling .txt.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from stages.ingest.faults import Unfit

CAPTION_KEY = "caption"
"""The text of the sibling .txt, as it would be without a template."""
SIDECAR = ".json"


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a template may draw on for one clip; each is asked for only when a key needs it."""

    caption: Callable[[], str | None]
    """The .txt; None where there is none."""
    sidecar: Mapping[str, object]
    tags: Callable[[], Mapping[str, str]]
    names: tuple[str, str, str]
    """Where each of the three lies, for the record."""


@lru_cache(maxsize=8)
def template_keys(template: str) -> tuple[str, ...]:
    """The keys of a template, in order. ValueError when it is not one."""
    keys: list[str] = []
    for _, key, form, conversion in string.Formatter().parse(template):
        if key is None:
            continue
        if form or conversion:
            raise ValueError(f"{{{key}}} may not have a format")
        if not key or key.isdigit() or "[" in key or not all(key.split(".")):
            raise ValueError(f"{{{key}}} is not the name of a key")
        keys.append(key)
    return tuple(keys)


def template_fault(template: str) -> str | None:
    """What is wrong with a template, or None."""
    try:
        keys = template_keys(template)
    except ValueError as error:
        return str(error)
    return None if keys else "it names no key in braces"


def filled(template: str, known: Known) -> tuple[str, str]:
    """The caption, and where its parts came from, such as `a.json + tags of a.mp3`.

    Raises:
        Unfit: `caption_key_missing`, naming the first key that has no value.
    """
    values: dict[str, str] = {}
    used: set[int] = set()
    for key in template_keys(template):
        place, values[key] = _value(key, known)
        used.add(place)
    parts = string.Formatter().parse(template)
    text = "".join(before + (values[key] if key is not None else "") for before, key, _, _ in parts)
    return text, " + ".join(known.names[place] for place in sorted(used))


def _value(key: str, known: Known) -> tuple[int, str]:
    """(which source, the value as text) of one key."""
    if key == CAPTION_KEY and (caption := known.caption()) is not None:
        return 0, caption
    if (text := _as_text(_found(known.sidecar, key))) is not None:
        return 1, text
    tags = known.tags()
    if (text := _as_text(tags.get(key.casefold()))) is not None:
        return 2, text
    there = sorted({str(name) for name in known.sidecar} | set(tags))
    shown = ", ".join(there[:12]) + (" ..." if len(there) > 12 else "") or "none"
    raise Unfit("caption_key_missing", key=key, there=shown)


def _found(sidecar: object, key: str) -> object:
    """The value under a key; `meta.genre` looks into objects unless that very key is there."""
    if isinstance(sidecar, Mapping) and key in sidecar:
        return sidecar[key]
    for part in key.split("."):
        sidecar = sidecar.get(part) if isinstance(sidecar, Mapping) else None
    return sidecar


def _as_text(value: object) -> str | None:
    """A string, a number, true or false, or a list of such; None for what is no text, or empty."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else None
    if isinstance(value, list):
        texts = [_as_text(one) for one in value if not isinstance(one, list)]
        return ", ".join(text for text in texts if text) or None
    return None


def read_sidecar(data: bytes) -> dict[str, object]:
    """The JSON object beside an audio file.

    Raises:
        Unfit: `sidecar_invalid`.
    """
    try:
        read = json.loads(data.decode("utf-8-sig"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Unfit("sidecar_invalid", why=str(error).partition("\n")[0]) from None
    if not isinstance(read, dict):
        raise Unfit("sidecar_invalid", why="it holds no object")
    return read


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")
