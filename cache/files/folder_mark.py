"""Small files that say whose folder this is, so that it is never taken for data. Light: standard library only."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

STORE_MARK, OUTPUT_MARK = ".sa3-trainer-store", ".sa3-trainer-output"
"""Names of the files in the root of a store, and in an output folder that a run made."""
_TEXT = {
    STORE_MARK: b"This folder is a store of sa3-trainer. While this file is here, it is never read as data.\n",
    OUTPUT_MARK: b"sa3-trainer writes adapters into this folder. While this file is here, it is never read as data.\n",
}


def mark(folder: Path, name: str) -> None:
    """Put a mark into a folder, unless it is there. Raises: OSError."""
    file = folder / name
    if not os.path.lexists(file):
        file.write_bytes(_TEXT[name])


def looks_like_store(names: Collection[str]) -> bool:
    """Whether a folder with these entries is a store: marked, or written before stores were marked."""
    return STORE_MARK in names or {"digests.sqlite", "shared"} <= set(names)
