"""Errors of the store. Light: standard library only.

CacheError
├── CannotFingerprint      a record holds a value without a canonical byte string
├── WriteFailed            the disk is full, or the folder cannot be written to; no partial file is left
├── ShardDamaged           a shard does not match its checksums, or its keys do not match its name
├── ShardReplaced          a shard is intact, but holds another item than the manifest says
├── ItemNotFound           the shard that should hold an item is gone
├── ManifestDamaged        a manifest cannot be read
├── ManifestMismatch       a manifest's columns are not those of the row type
├── ArtifactDamaged        an artifact's files do not match its receipt
├── ReceiptDamaged         a receipt cannot be read
├── SharedFileListDamaged  an artifact's list of shared files cannot be read
├── LockHeld               another process holds the lock
└── UnknownFormat          no latent format of that name
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar


class CacheError(Exception):
    """Base of all errors of the store. The message says what happened, why, and what to type next."""

    code: ClassVar[str]
    """`type` of the error in JSON documents, where it differs from the name of the class: programs match on it."""


def verify_command(path: Path, depth: int) -> str:
    """What to type to repair a store.

    Args:
        path: a file or folder in it.
        depth: number of folder names between the store's root and that path; -1: it is the root.
    """
    chain = [path, *path.parents]
    root = chain[min(depth + 1, len(chain) - 1)]
    return f"sa3-trainer verify --repair --store {shlex.quote(str(root))}"


class CannotFingerprint(CacheError, TypeError):
    """A record holds a value without a canonical byte string, so it cannot be fingerprinted."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(
            f"{where or 'the value'} cannot be fingerprinted: {why}. "
            "Use str, int, finite float, bool, None, lists, mappings with str keys and frozen dataclasses of these."
        )


class WriteFailed(CacheError):
    """A file could not be written; no partial file is left under its name."""

    def __init__(self, file: Path, why: str, free_bytes: int | None, flag: str = "--store") -> None:
        """`flag`: the option that names the folder concerned."""
        self.file, self.why, self.free_bytes, self.flag = file, why, free_bytes, flag
        free = "" if free_bytes is None else f" ({free_bytes / 1e6:,.0f} MB are free there)"
        super().__init__(
            f"{file} could not be written: {why}{free}. No partial file is left, and finished work is kept. "
            f"Free some space or fix the folder, or choose another with {flag}, then run the same command again."
        )


class ShardDamaged(CacheError):
    """A shard does not match its checksums, or its keys do not match its name."""

    def __init__(self, shard: Path, problem: str) -> None:
        self.shard, self.problem = shard, problem
        super().__init__(
            f"{shard} is damaged: {problem}. The disk may have filled up or lost data. "
            f"Run `{verify_command(shard, 2)}`, then the same command again: only damaged items are encoded again."
        )


class ShardReplaced(CacheError):
    """A shard is intact, but holds another item than the manifest says."""

    def __init__(self, shard: Path, problem: str) -> None:
        self.shard = shard
        super().__init__(
            f"{shard} is intact, but is not the file the manifest was written for: {problem}. "
            f"It was replaced since. Run `{verify_command(shard, 2)}`, then the same command again."
        )


class ItemNotFound(CacheError):
    """The shard that should hold an item is gone."""

    def __init__(self, key: str, where: Path) -> None:
        super().__init__(
            f"{where} holds no item {key[:16]}. "
            "Run `sa3-trainer encode` on the dataset again: it encodes what is missing."
        )


class ManifestDamaged(CacheError):
    """A manifest cannot be read."""

    def __init__(self, file: Path, why: str) -> None:
        self.file = file
        super().__init__(
            f"{file} cannot be read as a manifest ({why}). "
            f"Run `{verify_command(file, 2)}`, then the same command again: it is recreated."
        )


class ManifestMismatch(CacheError):
    """A manifest's columns are not those of the row type. Lists every difference."""

    def __init__(self, file: Path, row_type: str, differences: Sequence[str]) -> None:
        self.differences = tuple(differences)
        lines = "\n".join(f"    {line}" for line in differences)
        super().__init__(
            f"{file} does not have the columns of {row_type}:\n{lines}\n"
            f"If another version wrote it, delete the folder {file.parent} and run the same command again."
        )


class ArtifactDamaged(CacheError):
    """An artifact's files do not match its receipt. Lists every difference."""

    def __init__(self, directory: Path, differences: Sequence[str]) -> None:
        self.directory, self.differences = directory, tuple(differences)
        lines = "\n".join(f"    {line}" for line in differences)
        super().__init__(
            f"{directory} does not match its receipt:\n{lines}\n"
            f"Run `{verify_command(directory, 1)}`, then the same command again: it is recreated."
        )


class ReceiptDamaged(CacheError):
    """A receipt cannot be read, so its artifact cannot be trusted."""

    def __init__(self, file: Path, why: str) -> None:
        self.file = file
        super().__init__(
            f"{file} cannot be read as a receipt ({why}). "
            f"Run `{verify_command(file, 2)}`, then the same command again: it is recreated."
        )


class SharedFileListDamaged(CacheError):
    """An artifact's list of shared files cannot be read."""

    code = "NeedsDamaged"

    def __init__(self, file: Path, line: str) -> None:
        self.file = file
        super().__init__(
            f"{file} is damaged at {line!r}. Run `{verify_command(file, 2)}`, then the same command again."
        )


class LockHeld(CacheError):
    """Another process holds the lock."""

    code = "HeldByAnother"

    def __init__(self, what: str, holder: str) -> None:
        self.what, self.holder = what, holder
        super().__init__(
            f"{what} is locked by {holder}. Wait for it to finish, or stop it, then run the same command again."
        )


class UnknownFormat(CacheError):
    """No latent format of that name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"there is no latent format {name!r}. Choose one of: {', '.join(known)}.")
