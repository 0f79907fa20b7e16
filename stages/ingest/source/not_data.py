"""Folders inside a dataset that hold no data: stores, output folders, folders of tools. Light: standard library only.

Each is listed as one entry, whose fault becomes a note; what is in it is neither listed nor read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from cache.files.folder_mark import OUTPUT_MARK, looks_like_store
from stages.ingest.source.names import TOOL_FOLDERS

Parts = tuple[str, ...]
"""A name, split at its slashes."""


def not_data(parts: Parts, entries: Collection[str]) -> str | None:
    """Why a folder below the root of a dataset is not read, by its name and the names in it; None if it is read."""
    if looks_like_store(entries):
        return "store_folder"
    if OUTPUT_MARK in entries:
        return "output_folder"
    return "tool_folder" if parts[-1].lower() in TOOL_FOLDERS else None


def folders_without_data(files: Iterable[Parts]) -> dict[Parts, str]:
    """Every folder of an archive that is not read, with the reason; those inside another are left out or not.

    The root is among them only where it is a store.
    """
    entries: dict[Parts, set[str]] = defaultdict(set)
    for parts in files:
        for depth in range(len(parts)):
            entries[parts[:depth]].add(parts[depth])
    found = {folder: not_data(folder, names) for folder, names in entries.items() if folder}
    if looks_like_store(entries.get((), ())):
        found[()] = "store_folder"
    return {folder: reason for folder, reason in found.items() if reason is not None}


def outermost(parts: Parts, folders: Collection[Parts]) -> Parts | None:
    """The outermost of these folders that a file lies in; None if in none."""
    return next((parts[:depth] for depth in range(1, len(parts)) if parts[:depth] in folders), None)
