"""Finds folders in place of files and files in place of folders, which no command can read or replace.

Light: standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from cache.store import Store
from pipeline.maintenance.damage import Damage, path_in_store

_FOLDERS = (
    *("ingest", "encode", "train", "scratch", "locks", "shared"),
    *(f"shared/{pool}" for pool in ("latents", "prompts", "prepared", "sources")),
    "shared/sources/addresses",
)
_NAMES = {
    r"(ingest|encode|train)/[0-9a-f]{32}": True,
    r"scratch/[a-z]+-[0-9a-f]{32}": True,
    r"shared/prepared/[0-9a-f]{2}": True,
    r"digests\.sqlite|\.sa3-trainer-store": False,
    r"locks/[^/]+\.(lock|json)": False,
    r"scratch/[^/]+\.json": False,
    r"shared/(latents|prompts)/([0-9a-f]{32}\.[a-z0-9]+|registry-[a-z0-9]+\.sqlite)": False,
    r"shared/sources/[0-9a-f]{32}\.[a-z]+": False,
    r"shared/sources/addresses/[^/]+\.(json|part)": False,
}
"""Patterns of names that belong to a store, and whether each is that of a folder."""


def place_damages(store: Store) -> Iterator[Damage]:
    """Entries of the wrong kind; prepared clips, which lie deeper, are compared with their facts anyway."""
    for name in _FOLDERS:
        path = store.root / name
        if os.path.lexists(path) and not path.is_dir():
            yield _damage(store, path, folder=True)
    for parent in ("", *_FOLDERS):
        yield from _wrong_entries(store, store.root / parent)


def _wrong_entries(store: Store, folder: Path) -> Iterator[Damage]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        name = path_in_store(store, path)
        wanted = next((is_folder for pattern, is_folder in _NAMES.items() if re.fullmatch(pattern, name)), None)
        if wanted is not None and not _is_wanted(path, folder=wanted):
            yield _damage(store, path, folder=wanted)


def _is_wanted(path: Path, *, folder: bool) -> bool:
    """Whether an entry is of its kind; a lock that is a link is never opened."""
    return path.is_dir() if folder else path.is_file() and not (path.is_symlink() and path.suffix == ".lock")


def _damage(store: Store, path: Path, *, folder: bool) -> Damage:
    is_file = path.is_file() and not path.is_symlink()
    found = "a folder" if path.is_dir() else "a file" if is_file else "something else, such as a link,"
    what = f"{found} is in place of a {'folder' if folder else 'file'}"
    meaning = "what the store keeps there cannot be read or written; it is made again once the way is clear"
    return Damage(kind="place", path=path_in_store(store, path), what=what, meaning=meaning)
