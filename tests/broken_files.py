"""Ways in which a file of a store or of a model can be broken."""

from __future__ import annotations

from pathlib import Path


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def lost(file: Path) -> None:
    file.unlink()


def replaced_by_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def linked_in_a_circle(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)
