"""Captions made by a template whose keys are filled with facts about a clip. Light: standard library only.

A key is looked up in the JSON file next to the audio, then in the audio's own tags; `{caption}` is the .txt of the same
name, and `{filename}` the name of the audio file as words, unless the JSON file has such a key.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from stages.ingest.faults import FileRejected
from stages.text import NotText, control_fault, decoded, parsed_json

CAPTION_KEY = "caption"
"""Key of the text of the .txt, which would be the caption without a template."""
FILENAME_KEY = "filename"
"""Key of the audio file's name without folder and suffix, and with spaces for underscores."""
SIDECAR = ".json"


@dataclass(frozen=True, kw_only=True)
class CaptionSources:
    """The sources of one clip's keys; caption and tags are read only when a key needs them."""

    caption: Callable[[], str | None]
    """The text of the .txt; None where there is none."""
    sidecar: Mapping[str, object]
    tags: Callable[[], Mapping[str, str]]
    names: tuple[str, str, str]
    """The files that caption, sidecar and tags come from, for the record."""
    filename: str = ""
    """The audio file's name in words."""


@lru_cache(maxsize=8)
def template_keys(template: str) -> tuple[str, ...]:
    """The keys of a template, in order.

    Raises:
        ValueError: it is not a valid template.
    """
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
    """What is wrong with a template; None if it is valid."""
    try:
        keys = template_keys(template)
    except ValueError as error:
        return str(error)
    return control_fault(template) if keys else "it names no key in braces"


def filled_template(template: str, sources: CaptionSources) -> tuple[str, str]:
    """The caption, and the files its values came from, such as `a.json + tags of a.mp3`.

    Raises:
        FileRejected: `caption_key_missing`, naming the first key that has no value.
    """
    values: dict[str, str] = {}
    used: set[int] = set()
    for key in template_keys(template):
        source, values[key] = _value(key, sources)
        used.add(source)
    parts = string.Formatter().parse(template)
    text = "".join(before + (values[key] if key is not None else "") for before, key, _, _ in parts)
    return text, " + ".join((*sources.names, "its name")[source] for source in sorted(used))


def _value(key: str, sources: CaptionSources) -> tuple[int, str]:
    """(index of the source, the value as text) of one key."""
    if key == CAPTION_KEY and (caption := sources.caption()) is not None:
        return 0, caption
    if (text := _as_text(_looked_up(sources.sidecar, key))) is not None:
        return 1, text
    if key == FILENAME_KEY and sources.filename:
        return 3, sources.filename
    tags = sources.tags()
    if (text := _as_text(tags.get(key.casefold()))) is not None:
        return 2, text
    texts = {**{str(name): value for name, value in sources.sidecar.items()}, **tags}
    available = sorted(name if _holds_text(value) else f"{name} without text" for name, value in texts.items())
    shown = ", ".join(available[:12]) + (" ..." if len(available) > 12 else "") or "none"
    raise FileRejected("caption_key_missing", key=key, there=shown)


def _looked_up(sidecar: object, key: str) -> object:
    """The value of a key; `meta.genre` looks into the object `meta` unless there is a key of that very name."""
    if isinstance(sidecar, Mapping) and key in sidecar:
        return sidecar[key]
    for part in key.split("."):
        sidecar = sidecar.get(part) if isinstance(sidecar, Mapping) else None
    return sidecar


def _holds_text(value: object) -> bool:
    return isinstance(value, Mapping) or _as_text(value) is not None


def _as_text(value: object) -> str | None:
    """A string, number, boolean or list of these as text; None for other values and for empty text."""
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


def name_in_words(member: str) -> str:
    """`dusty half time` of `drums/dusty_half_time.wav`."""
    return member.rpartition("/")[2].rpartition(".")[0].replace("_", " ").strip()


def read_sidecar(data: bytes) -> dict[str, object]:
    """The JSON object in the file next to an audio file.

    Raises:
        FileRejected: `sidecar_invalid`.
    """
    try:
        read = parsed_json(decoded(data))
    except NotText as error:
        raise FileRejected("sidecar_invalid", why=f"it is {error}") from None
    except ValueError as error:
        raise FileRejected("sidecar_invalid", why=str(error)) from None
    if not isinstance(read, dict):
        raise FileRejected("sidecar_invalid", why="it is not an object")
    return read
