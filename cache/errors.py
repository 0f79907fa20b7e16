"""What can go wrong in the archive.

CacheError
├── CannotFingerprint  a record holds a value that has no canonical bytes
├── WriteFailed        the disk is full or refuses; nothing half-written is left
├── ShardDamaged       a shard does not hold what its checksum says
├── ShardReplaced      a shard is whole, but its item is not the one the manifest names
├── ItemNotFound       no shard holds the item asked for
├── ManifestDamaged    a manifest cannot be read
├── ManifestMismatch   a manifest's columns are not those of the row type
├── ArtifactNotFound   no finished artifact of that name
├── ArtifactDamaged    an artifact's files are not those its receipt lists
├── ReceiptDamaged     a receipt cannot be read
├── NeedsDamaged       an artifact's list of shared files cannot be read
├── HeldByAnother      another process is writing this fingerprint
└── UnknownFormat      no latent format of that name
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class CacheError(Exception):
    """The store cannot do what was asked; the message says what, why and what to type next."""


class CannotFingerprint(CacheError, TypeError):
    """A record holds a value that has no canonical bytes, so it cannot name a result."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(
            f"{where or 'the value'} cannot be fingerprinted: {why}. "
            "Use str, int, finite float, bool, None, lists, mappings with str keys and frozen dataclasses of these."
        )


class WriteFailed(CacheError):
    """A file could not be written; nothing half-written is left under its name."""

    def __init__(self, file: Path, why: str, free_bytes: int | None) -> None:
        self.file = file
        room = "" if free_bytes is None else f" ({free_bytes / 2**20:,.0f} MiB are free there)"
        super().__init__(
            f"{file} could not be written: {why}{room}. Nothing half-written is left and what was finished is kept. "
            "Make room or mend the folder, or choose another with --store, then run the same command again."
        )


class ShardDamaged(CacheError):
    """A shard does not hold what its checksum says."""

    def __init__(self, shard: Path, what: str) -> None:
        self.shard, self.what = shard, what
        super().__init__(
            f"{shard} is damaged: {what}. The disk may have filled up or lost data. Run `sa3-trainer verify --repair`, "
            "then the same command again: only what is damaged is made again."
        )


class ShardReplaced(CacheError):
    """A shard is whole, but the item found there is not the one the manifest was written for."""

    def __init__(self, shard: Path, what: str) -> None:
        self.shard = shard
        super().__init__(
            f"{shard} is whole but is not the file the manifest was written for: {what}. "
            "It was made again, or swapped, since. Run `sa3-trainer verify --repair`, then the same command again."
        )


class ItemNotFound(CacheError):
    """No shard holds the item asked for."""

    def __init__(self, key: str, where: Path) -> None:
        super().__init__(
            f"{where} holds no item {key[:16]}. "
            "Run `sa3-trainer encode` on the dataset again: it makes what is missing."
        )


class ManifestDamaged(CacheError):
    """A manifest cannot be read."""

    def __init__(self, file: Path, why: str) -> None:
        self.file = file
        super().__init__(
            f"{file} cannot be read as a manifest ({why}). "
            "Run `sa3-trainer verify --repair`, then the same command again: it is made anew."
        )


class ManifestMismatch(CacheError):
    """A manifest's columns are not those of the row type. Lists every difference."""

    def __init__(self, file: Path, row_type: str, differences: Sequence[str]) -> None:
        self.differences = tuple(differences)
        lines = "\n".join(f"    {line}" for line in differences)
        super().__init__(
            f"{file} does not fit rows of {row_type}:\n{lines}\n"
            f"If another version wrote it, delete the folder {file.parent} and run the same command again."
        )


class ArtifactNotFound(CacheError):
    """No finished artifact of that name."""

    def __init__(self, stage: str, fingerprint: str) -> None:
        super().__init__(
            f"the store holds no finished {stage} {fingerprint[:16]}. Run `sa3-trainer {stage}` on the dataset first."
        )


class ArtifactDamaged(CacheError):
    """An artifact's files are not those its receipt lists. Lists every difference."""

    def __init__(self, directory: Path, faults: Sequence[str]) -> None:
        self.directory, self.faults = directory, tuple(faults)
        lines = "\n".join(f"    {line}" for line in faults)
        super().__init__(
            f"{directory} does not hold what its receipt says:\n{lines}\n"
            "Run `sa3-trainer verify --repair`, then the same command again: it is made anew."
        )


class ReceiptDamaged(CacheError):
    """A receipt cannot be read, so its artifact cannot be trusted."""

    def __init__(self, file: Path, why: str) -> None:
        self.file = file
        super().__init__(
            f"{file} cannot be read as a receipt ({why}). "
            "Run `sa3-trainer verify --repair`, then the same command again: it is made anew."
        )


class NeedsDamaged(CacheError):
    """An artifact's list of shared files cannot be read."""

    def __init__(self, file: Path, line: str) -> None:
        self.file = file
        super().__init__(
            f"{file} is damaged at {line!r}. Run `sa3-trainer verify --repair`, then the same command again."
        )


class HeldByAnother(CacheError):
    """Another process is writing this fingerprint."""

    def __init__(self, what: str, holder: str) -> None:
        self.what, self.holder = what, holder
        super().__init__(
            f"{what} is being made by {holder}. Wait for it to finish, or stop it, then run the same command again."
        )


class UnknownFormat(CacheError):
    """No latent format of that name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"there is no latent format {name!r}. Choose one of: {', '.join(known)}.")
