"""The list of shared files that an artifact references, so that no manifest must be opened.

    needs.tsv   one line per file: bytes, a tab, the path inside the store's shared folder; sorted by path

It is written before the commit, so the receipt covers it, and read line by line in constant memory.
Light: standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from cache.errors import SharedFileListDamaged
from cache.files.atomic_files import atomic_write_bytes

FILE_NAME = "needs.tsv"


def write_shared_files(directory: Path, num_bytes: Mapping[str, int]) -> None:
    """Writes the list for an artifact about to be committed, from bytes by path inside the shared folder."""
    lines = [f"{size}\t{path}\n" for path, size in sorted(num_bytes.items())]
    atomic_write_bytes(directory / FILE_NAME, "".join(lines).encode())


def iter_shared_files(directory: Path) -> Iterator[tuple[str, int]]:
    """(path inside the shared folder, bytes) of every shared file that an artifact references; empty without a list.

    Raises:
        SharedFileListDamaged: a line cannot be parsed.
    """
    file = directory / FILE_NAME
    with suppress(FileNotFoundError), _opened(file) as lines:
        for line in lines:
            size, _, path = line.rstrip("\n").partition("\t")
            if not size.isdigit() or not path or not line.endswith("\n"):
                raise SharedFileListDamaged(file, line[:80])
            yield path, int(size)


def _opened(file: Path) -> TextIO:
    if file.is_file() or not os.path.lexists(file):
        return file.open(encoding="utf-8", errors="replace")
    raise SharedFileListDamaged(file, "no regular file is there")


def missing_shared_files(directory: Path, shared: Path) -> list[str]:
    """Shared files that an artifact references and that are gone, or have another size than at the commit."""
    return [path for path, size in iter_shared_files(directory) if _size(shared / path) != size]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
