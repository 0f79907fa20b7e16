"""The shared files an artifact names, listed beside it so that a look needs no manifest reader. Light.

    needs.tsv   one line per file: bytes, a tab, the path inside the store's shared folder; in the order of the paths

Written into the workspace before the commit, so the receipt guards it. Read line by line: memory does not grow with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from cache.atomic_files import write_aside
from cache.errors import NeedsDamaged

NEEDS = "needs.tsv"


def write_needs(directory: Path, num_bytes: Mapping[str, int]) -> None:
    """List the shared files of an artifact about to be committed: bytes by path inside the shared folder."""
    lines = [f"{size}\t{path}\n" for path, size in sorted(num_bytes.items())]
    write_aside(directory / NEEDS, "".join(lines).encode())


def iter_needs(directory: Path) -> Iterator[tuple[str, int]]:
    """(path inside the shared folder, bytes) of every shared file an artifact names; nothing without a list.

    Raises:
        NeedsDamaged: a line is not of that form.
    """
    file = directory / NEEDS
    with suppress(FileNotFoundError), file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            size, _, path = line.rstrip("\n").partition("\t")
            if not size.isdigit() or not path or not line.endswith("\n"):
                raise NeedsDamaged(file, line[:80])
            yield path, int(size)


def lost(directory: Path, shared: Path) -> list[str]:
    """Shared files an artifact names that are gone, or of another size than when it was made."""
    return [path for path, size in iter_needs(directory) if _size(shared / path) != size]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
