"""Compares bundled weights, which the project creates itself, with the digests that they must have.

Nothing is written for it: a store may be read-only, and its disk full. Light: standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from stages import catalogue
from stages.errors import WeightsNotFound
from stages.models.checkpoint_folder import CONFIG_FILE, file_digest

TEMPORARY_PREFIX = "verify-"
"""Start of the name of a temporary folder in which earlier versions created weights for comparison."""


def weights_fault(folder: Path) -> str:
    """What is wrong with a folder of bundled weights; empty where nothing is.

    JSON files of the text encoder may contain the version of the library that wrote them, so they are only parsed.
    """
    family = next((family for family in catalogue.bundled_families() if family.folder_name() == folder.name), None)
    if family is None:
        return ""  # weights of another version of the project: nothing reads them
    return "; ".join(_faults(folder, family))


def _faults(folder: Path, family: catalogue.BundledFamily) -> Iterator[str]:
    for name, digest in family.TENSOR_DIGESTS.items():
        if why := _tensors_fault(folder / name, digest):
            yield f"{name} {why}"
    config = family.model_config(family.MODELS[0].name)
    texts = (folder / name for name in family.TEXT_FILES)
    for file in (folder / CONFIG_FILE, *texts):
        if why := _json_fault(file, config if file.name == CONFIG_FILE else None):
            yield f"{file.relative_to(folder).as_posix()} {why}"


def _tensors_fault(file: Path, digest: str) -> str:
    if not file.is_file():
        return "is gone"
    try:
        return "" if file_digest(file) == digest else "has other tensors than the same weights made again"
    except (WeightsNotFound, ValueError, KeyError, TypeError, OSError) as error:
        return f"cannot be read ({error})"


def _json_fault(file: Path, wanted: object) -> str:
    """`wanted`: its content, where that is known."""
    if not file.is_file():
        return "is gone"
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, OSError) as error:
        return f"cannot be read ({error})"
    return "" if wanted in (None, found) else "differs from the one that is made"
