"""Compares bundled weights, which the project creates itself, with the digests that they must have.

Nothing is written for it: a store may be read-only, and its disk full. Light: standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from cache.fingerprint import digest_bytes
from stages import catalogue
from stages.errors import WeightsNotFound
from stages.models.checkpoint_folder import CONFIG_FILE, DigestLookup, file_digest

TEMPORARY_PREFIX = "verify-"
"""Start of the name of a temporary folder in which earlier versions created weights for comparison."""


def weights_fault(folder: Path, digest_cache: DigestLookup | None = None) -> str:
    """What is wrong with a folder of bundled weights, wherever it lies; empty where nothing is.

    JSON files of the text encoder may contain the version of the library that wrote them; those are only parsed.

    Args:
        digest_cache: remembers the digests of unchanged files; without it every byte is read.
    """
    family = next((family for family in catalogue.bundled_families() if family.folder_name() == folder.name), None)
    if family is None:
        return ""  # weights of another version of the project: nothing reads them
    return "; ".join(_faults(folder, family, digest_cache))


def check_bundled_weights(folder: Path) -> None:
    """Compare every byte of bundled weights with their known digests, before they are loaded; others pass.

    Raises:
        WeightsNotFound: they were damaged so that not even their ctime has changed.
    """
    if fault := weights_fault(folder):
        raise WeightsNotFound(str(folder), fault, f"Delete that folder and run again: `rm -r {quote(str(folder))}`.")


def _faults(folder: Path, family: catalogue.BundledFamily, digest_cache: DigestLookup | None) -> Iterator[str]:
    for name, digest in family.TENSOR_DIGESTS.items():
        if why := _tensors_fault(folder / name, digest, digest_cache):
            yield f"{name} {why}"
    if why := _json_fault(folder / CONFIG_FILE, family.model_config(family.MODELS[0].name)):
        yield f"{CONFIG_FILE} {why}"
    for name, text_digest in family.TEXT_FILES.items():
        if why := _json_fault(folder / name, None, text_digest):
            yield f"{name} {why}"


def _tensors_fault(file: Path, digest: str, digest_cache: DigestLookup | None) -> str:
    if not file.is_file():
        return "is gone"
    try:
        same = file_digest(file, digest_cache) == digest
        return "" if same else "has other tensors than the same weights made again"
    except (WeightsNotFound, ValueError, KeyError, TypeError, OSError) as error:
        return f"cannot be read ({error})"


def _json_fault(file: Path, wanted: object, digest: str | None = None) -> str:
    """`wanted`, `digest`: its content, or the digest of its bytes, where that is known."""
    if not file.is_file():
        return "is gone"
    try:
        content = file.read_bytes()
        found = json.loads(content)
    except (ValueError, OSError) as error:
        return f"cannot be read ({error})"
    same = wanted in (None, found) and digest in (None, digest_bytes(content))
    return "" if same else "differs from the one that is made"
