"""What can go wrong in the archive.

CacheError
├── ShardDamaged      a shard does not hold what its checksum says
├── ItemNotFound      no shard holds the item asked for
├── ArtifactNotFound  no finished artifact of that name
├── ReceiptDamaged    a receipt cannot be read
└── HeldByAnother     another process is writing this fingerprint
"""

from __future__ import annotations

from pathlib import Path


class CacheError(Exception):
    """The store cannot do what was asked; the message says what, why and what to type next."""


class ShardDamaged(CacheError):
    """A shard does not hold what its checksum says."""

    def __init__(self, shard: Path, what: str) -> None:
        self.shard = shard
        super().__init__(
            f"{shard} is damaged: {what}. The disk may have filled up or lost data. "
            f"Delete this one file and run the same command again: only what it held is made again."
        )


class ItemNotFound(CacheError):
    """No shard holds the item asked for."""

    def __init__(self, key: str, where: Path) -> None:
        super().__init__(f"{where} holds no item {key[:16]}. Run `sa3-trainer encode` on the dataset again: it makes what is missing.")


class ArtifactNotFound(CacheError):
    """No finished artifact of that name."""

    def __init__(self, stage: str, fingerprint: str) -> None:
        super().__init__(f"the store holds no finished {stage} {fingerprint[:16]}. Run `sa3-trainer {stage}` on the dataset first.")


class ReceiptDamaged(CacheError):
    """A receipt cannot be read, so its artifact cannot be trusted."""

    def __init__(self, file: Path, why: str) -> None:
        super().__init__(f"{file} cannot be read as a receipt ({why}). Delete the folder {file.parent} and run again: it is made anew.")


class HeldByAnother(CacheError):
    """Another process is writing this fingerprint."""

    def __init__(self, what: str, holder: str) -> None:
        super().__init__(f"{what} is being made by {holder}. Wait for it to finish, or stop it, then run the same command again.")
