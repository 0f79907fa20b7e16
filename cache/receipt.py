"""The receipt of a finished artifact: its name, its inputs and its files. Light: standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cache.checked_record import checked, with_check
from cache.errors import ReceiptDamaged
from cache.files.regular_file import NotRegularFile, read_regular
from cache.fingerprint import canonical

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of an artifact."""

    name: str
    """Path inside the artifact, with forward slashes."""
    num_bytes: int
    sha256: str
    """`sha256:<hex>` of its bytes."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The record stored with a finished artifact. JSON values only."""

    stage: str
    fingerprint: str
    """Name of the artifact."""
    identity: str
    """Name of the run that made it: the fingerprint, except where a longer run may continue a shorter one."""
    version: int
    """The stage's version."""
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of its inputs, by name."""
    components: Mapping[str, str] = field(default_factory=dict)
    """Digests of the parts of the checkpoint that were used."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[FileEntry, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions and device: recorded, never hashed into a name."""
    started: str = ""
    finished: str = ""
    """ISO 8601, UTC."""
    format_version: int = FORMAT_VERSION

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.num_bytes for entry in self.files)

    def to_json(self) -> str:
        """The receipt as indented JSON, with a digest of itself.

        Raises:
            CannotFingerprint: a field holds NaN, or a value that JSON cannot hold.
        """
        record = with_check(json.loads(canonical(self)))
        return json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str | bytes, file: Path) -> Receipt:
        """Parses a receipt; `file` is named in the error when it is damaged.

        Raises:
            ReceiptDamaged: it is not JSON, its fields or their types are wrong, or its digest does not match.
        """
        try:
            return _receipt(json.loads(text))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ReceiptDamaged(file, str(error) or type(error).__name__) from error


def read_receipt(file: Path) -> Receipt:
    """Reads a receipt. Raises: FileNotFoundError, ReceiptDamaged."""
    try:
        content = read_regular(file)
    except NotRegularFile as error:
        raise ReceiptDamaged(file, error.what) from error
    return Receipt.from_json(content, file)


def _receipt(record: Any) -> Receipt:
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"format_version is {version!r}, this program reads {FORMAT_VERSION}")
    record = checked(record)
    wanted = {entry.name for entry in fields(Receipt)}
    if wanted != set(record):
        raise ValueError(f"its fields differ by {', '.join(sorted(wanted ^ set(record)))}")
    return Receipt(**{**record, "files": tuple(FileEntry(**entry) for entry in record["files"])})
