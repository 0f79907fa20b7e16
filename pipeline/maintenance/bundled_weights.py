"""Compares bundled weights, which the project creates itself, with the same weights created again.

Light: a family's code is imported when its weights are compared.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from stages import catalogue
from stages.errors import WeightsNotFound
from stages.models.checkpoint_folder import file_digest

TEMPORARY_PREFIX = "verify-"
"""Start of the name of a temporary folder with weights created for comparison."""


def weights_fault(folder: Path) -> str:
    """What is wrong with a folder of bundled weights; empty where it equals weights created again.

    JSON files of the text encoder may contain the version of the library that wrote them, so they are only parsed.
    """
    family = _family(folder.name)
    if family is None:
        return ""  # weights of another version of the project: nothing reads them
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=TEMPORARY_PREFIX) as temporary:
        fresh = Path(temporary) / folder.name
        family.make(fresh)
        return "; ".join(_differences(folder, fresh))


def _family(folder_name: str) -> catalogue.BundledFamily | None:
    return next((family for family in catalogue.bundled_families() if family.folder_name() == folder_name), None)


def _differences(folder: Path, fresh: Path) -> list[str]:
    names = sorted(path.relative_to(fresh).as_posix() for path in fresh.rglob("*") if path.is_file())
    return [f"{name} {why}" for name in names if (why := _difference(folder / name, fresh / name))]


def _difference(file: Path, fresh: Path) -> str:
    if not file.is_file():
        return "is gone"
    try:
        if file.suffix == ".safetensors":
            return (
                "" if file_digest(file) == file_digest(fresh) else "has other tensors than the same weights made again"
            )
        if file.suffix == ".json":
            json.loads(file.read_bytes())
    except (WeightsNotFound, ValueError, KeyError, TypeError, OSError) as error:
        return f"cannot be read ({error})"
    if file.name == "model_config.json" and file.read_bytes() != fresh.read_bytes():
        return "differs from the same file made again"
    return ""
