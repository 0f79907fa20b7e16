"""JSON records that hold a digest of themselves, so that a changed digit is noticed. Light: standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_CHECK = "check"


def with_check(record: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """The record with its digest.

    Args:
        name: what the record is about, where that is told by its file's name alone: it enters the digest, so that a
            record that was swapped with another is noticed too.
    """
    return {**record, _CHECK: _digest(record, name)}


def checked(record: Any, name: str = "") -> dict[str, Any]:
    """The fields of a record without its digest.

    Raises:
        ValueError: it is no JSON object, or its digest is missing or another.
    """
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    fields = {key: value for key, value in record.items() if key != _CHECK}
    if record.get(_CHECK) != _digest(fields, name):
        raise ValueError("its checksum does not match its content")
    return fields


def _digest(record: Mapping[str, Any], name: str) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode() + name.encode()).hexdigest()
