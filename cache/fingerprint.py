"""Content addressing: canonical bytes of records, fingerprints, digests of files. Light: standard library only."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from cache.errors import CannotFingerprint

ALGORITHM = "sha256"


def canonical(value: object) -> bytes:
    """Canonical JSON of a value: sorted keys, no spaces, UTF-8, floats by repr, tuples as lists.

    Frozen dataclasses are encoded as mappings of their fields. 1, 1.0 and True differ. Values that could mean different
    things on different machines or days are refused: paths, NaN and infinity, sets, enums, numpy scalars.

    Raises:
        CannotFingerprint: names the entry inside the value and the reason.
    """
    text = json.dumps(_plain(value, ""), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def fingerprint(tag: str, record: Mapping[str, object]) -> str:
    """SHA-256, as 64 hex digits, of a tag (the kind of thing named) and a record (everything that determines it)."""
    return hashlib.sha256(b"[%b,%b]" % (canonical(tag), canonical(record))).hexdigest()


def digest_bytes(data: bytes | bytearray | memoryview) -> str:
    """`sha256:<hex>` of bytes."""
    return f"{ALGORITHM}:{hashlib.sha256(data).hexdigest()}"


def digest_stream(file: Any) -> str:
    """`sha256:<hex>` of a binary file from its current position to its end."""
    return f"{ALGORITHM}:{hashlib.file_digest(file, ALGORITHM).hexdigest()}"


def digest_file(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes."""
    with path.open("rb") as file:
        return digest_stream(file)


def _plain(value: Any, where: str) -> Any:
    """The value in plain JSON types. Raises: CannotFingerprint."""
    kind = type(value)  # exact: a numpy float or a str enum is a subclass and prints otherwise elsewhere
    if value is None or kind in (bool, int):
        return value
    if kind is float:
        return _finite(value, where)
    if kind is str:
        return _encodable(value, where)
    if kind in (list, tuple):
        return [_plain(entry, f"{where}[{number}]") for number, entry in enumerate(value)]
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(entry, f"{where}.{key}".lstrip(".")) for key, entry in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(_as_mapping(value, where), where)
    raise CannotFingerprint(where, f"a {kind.__module__}.{kind.__qualname__} has no canonical bytes")


def _finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise CannotFingerprint(where, f"{value} is not a finite number")
    return value


def _encodable(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise CannotFingerprint(where, f"{text!r} is not valid Unicode") from None
    return text


def _key(key: object, where: str) -> str:
    if type(key) is not str:
        raise CannotFingerprint(where, f"the key {key!r} is not a str")
    return _encodable(key, where)


def _as_mapping(value: Any, where: str) -> dict[str, object]:
    if not value.__dataclass_params__.frozen:
        raise CannotFingerprint(where, f"the dataclass {type(value).__qualname__} is not frozen")
    return {field.name: getattr(value, field.name) for field in fields(value)}
