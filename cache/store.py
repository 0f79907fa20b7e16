"""Finished artifacts by name, and one writer per name. Light: standard library only.

    <root>/<stage>/<fingerprint>/   an artifact: its files and receipt.json
    <root>/scratch/<stage>-<identity>/   what a run has made so far; running again goes on there
    <root>/shared/<pool>/   what artifacts share by content: sealed files that are never changed
    <root>/locks/   who is writing what

Commit = fsync every file, write receipt.json last, rename the folder into place. A folder without a receipt does not
exist. Folder names hold the first 32 of 64 hex digits; the receipt holds them all.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from platform import node

from cache.atomic_files import fsync_directory, fsync_file, sweep, write_aside, write_failed
from cache.errors import ArtifactDamaged, ArtifactNotFound, HeldByAnother, ReceiptDamaged
from cache.fingerprint import digest_file
from cache.receipt import FileEntry, Receipt, read_receipt

RECEIPT = "receipt.json"
NAME_DIGITS = 32
_RESERVED = ("scratch", "shared", "locks")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes on disk, by folder name."""

    artifacts: dict[str, int]
    """By `<stage>/<first 32 digits>`."""
    shared: dict[str, int]
    """By pool: `latents`, `prompts`, `prepared`."""
    scratch: dict[str, int]
    """Unfinished runs, by `<stage>-<first 32 digits of the identity>`."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(sum(part.values()) for part in (self.artifacts, self.shared, self.scratch))


class Store:
    """A folder of finished artifacts. Nothing is written outside it; looking never creates it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    @property
    def shared(self) -> Path:
        """Root of the pools that artifacts share by content."""
        return self.root / "shared"

    def directory(self, stage: str, fingerprint: str) -> Path:
        """Where the artifact of that name lies, or would lie."""
        return self.root / _stage_name(stage) / _short(fingerprint)

    def scratch(self, stage: str, identity: str) -> Path:
        """Where a run of that identity works, or would work; not created here."""
        return self.root / "scratch" / f"{_stage_name(stage)}-{_short(identity)}"

    def find(self, stage: str, fingerprint: str) -> Receipt | None:
        """The receipt of a finished artifact, or None. Costs one small read and a stat per file.

        Raises:
            ReceiptDamaged: there is a receipt, but it cannot be believed or is another artifact's.
            ArtifactDamaged: a file is missing or has another size (content is compared by `faults`).
        """
        directory = self.directory(stage, fingerprint)
        try:
            receipt = read_receipt(directory / RECEIPT)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if (receipt.stage, receipt.fingerprint) != (stage, fingerprint):
            raise ReceiptDamaged(directory / RECEIPT, f"it is of {receipt.stage} {receipt.fingerprint}")
        faults = _size_faults(directory, receipt)
        if faults:
            raise ArtifactDamaged(directory, faults)
        return receipt

    def get(self, stage: str, fingerprint: str) -> Receipt:
        """`find`, but an artifact that does not exist is ArtifactNotFound."""
        receipt = self.find(stage, fingerprint)
        if receipt is None:
            raise ArtifactNotFound(stage, fingerprint)
        return receipt

    def faults(self, receipt: Receipt) -> list[str]:
        """What differs between an artifact's files and its receipt, reading every byte; empty when all is well."""
        directory = self.directory(receipt.stage, receipt.fingerprint)
        wrong_size = _size_faults(directory, receipt)
        listed = {RECEIPT, *(entry.name for entry in receipt.files)}
        extra = [f"{name} is not on the receipt" for name in sorted(file_sizes(directory)) if name not in listed]
        return wrong_size + extra + ([] if wrong_size else _digest_faults(directory, receipt))

    def receipts(
        self, stage: str | None = None, on_damage: Callable[[ReceiptDamaged], None] | None = None
    ) -> list[Receipt]:
        """Receipts of all artifacts (of one stage), newest first.

        Args:
            on_damage: told of each damaged receipt, which is then left out; without it the first one is raised.
        """
        found = []
        for directory in self._artifact_directories(stage):
            try:
                found.append(read_receipt(directory / RECEIPT))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except ReceiptDamaged as error:
                if on_damage is None:
                    raise
                on_damage(error)
        return sorted(found, key=lambda receipt: (receipt.finished, receipt.fingerprint), reverse=True)

    def commit(self, stage: str, fingerprint: str, scratch: Path, receipt: Receipt) -> Receipt:
        """Make the scratch folder the artifact of that name; return the receipt with its files listed.

        An artifact that is already there stays, and the scratch folder is dropped: the same name is the same content.
        The caller holds the run's identity (`hold`).

        Raises:
            WriteFailed: the disk is full; the scratch folder is still there and nothing is committed.
        """
        if (receipt.stage, receipt.fingerprint) != (stage, fingerprint):
            raise ValueError(f"a receipt of {receipt.stage} {receipt.fingerprint} cannot commit {stage} {fingerprint}")
        there = self.find(stage, fingerprint)
        if there is not None:
            shutil.rmtree(scratch)
            return there
        try:
            sealed = _sealed(scratch, receipt)
            self._move_into_place(scratch, self.directory(stage, fingerprint))
        except OSError as error:
            raise write_failed(self.directory(stage, fingerprint), error) from error
        return sealed

    def drop(self, stage: str, fingerprint: str) -> None:
        """Delete an artifact; its receipt goes first, so a kill in between leaves nothing that is believed."""
        directory = self.directory(stage, fingerprint)
        (directory / RECEIPT).unlink(missing_ok=True)
        if directory.exists():
            shutil.rmtree(directory)

    @contextmanager
    def hold(self, stage: str, identity: str) -> Iterator[None]:
        """Be the only writer of a run identity while the block lasts. A holder that dies, however, frees it.

        Raises:
            HeldByAnother: naming the holder's process, host, start and command.
        """
        from filelock import FileLock, Timeout  # deferred: plan and status take no lock

        name = f"{_stage_name(stage)}-{_short(identity)}"
        lock_file = self.root / "locks" / f"{name}.lock"
        holder_file = lock_file.with_suffix(".json")
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise HeldByAnother(f"{stage} {identity[:16]}", _holder_in(holder_file)) from None
        try:
            write_aside(holder_file, json.dumps(_this_process()).encode())
            yield
        finally:
            with suppress(OSError):
                holder_file.unlink()
            lock.release()

    def sizes(self) -> Sizes:
        """Bytes of every artifact, pool and unfinished run; one walk over the folder, no file is opened."""
        artifacts = {f"{path.parent.name}/{path.name}": bytes_under(path) for path in self._artifact_directories(None)}
        shared, scratch = self.shared, self.root / "scratch"
        return Sizes(
            artifacts=artifacts,
            shared={path.name: bytes_under(path) for path in _folders(shared)},
            scratch={path.name: bytes_under(path) for path in _folders(scratch)},
        )

    def _artifact_directories(self, stage: str | None) -> list[Path]:
        stages = [path for path in _folders(self.root) if path.name not in _RESERVED]
        if stage is not None:
            stages = [path for path in stages if path.name == _stage_name(stage)]
        return [directory for path in stages for directory in _folders(path)]

    def _move_into_place(self, scratch: Path, home: Path) -> None:
        home.parent.mkdir(parents=True, exist_ok=True)
        if home.exists():  # without a receipt, or `find` would have returned it: half of a deletion
            shutil.rmtree(home)
        scratch.replace(home)
        for folder in (home.parent, scratch.parent, self.root):
            fsync_directory(folder)


def iter_sizes(folder: Path) -> Iterator[tuple[str, int]]:
    """(path inside it with forward slashes, bytes) of every file below a folder; memory does not grow with them."""
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with suppress(FileNotFoundError), os.scandir(folder / inside) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{inside}{entry.name}/")
                    continue
                with suppress(FileNotFoundError):  # a temporary that got its name, or was swept, since it was listed
                    yield f"{inside}{entry.name}", entry.stat(follow_symlinks=False).st_size


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder, by its path inside it with forward slashes; empty without a folder."""
    return dict(iter_sizes(folder))


def bytes_under(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(size for _, size in iter_sizes(folder))


def _stage_name(stage: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", stage) or stage in _RESERVED:
        raise ValueError(f"a stage is named by lower-case letters, and not {', '.join(_RESERVED)}; got {stage!r}")
    return stage


def _short(fingerprint: str) -> str:
    """The folder's name. Also keeps everything inside the root: no fingerprint holds a slash."""
    if not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
        raise ValueError(f"a fingerprint is 64 hex digits; got {fingerprint!r}")
    return fingerprint[:NAME_DIGITS]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _sealed(scratch: Path, receipt: Receipt) -> Receipt:
    """fsync everything in the scratch folder and write its receipt, last."""
    (scratch / RECEIPT).unlink(missing_ok=True)  # of a commit that was killed before its rename
    folders = [scratch, *(path for path in scratch.rglob("*") if path.is_dir())]
    for folder in folders:
        sweep(folder)
    files = tuple(_entry(scratch, name) for name in sorted(file_sizes(scratch)))
    for folder in folders:
        fsync_directory(folder)
    sealed = replace(receipt, files=files)
    text = sealed.to_json()
    write_aside(scratch / RECEIPT, text.encode())
    return Receipt.from_json(text, scratch / RECEIPT)


def _entry(scratch: Path, name: str) -> FileEntry:
    path = scratch / name
    if path.is_symlink() or not path.is_file() or name.endswith(".tmp"):
        raise ValueError(f"{path} cannot be part of an artifact: only finished plain files are")
    fsync_file(path)
    return FileEntry(name=name, num_bytes=path.stat().st_size, sha256=digest_file(path))


def _size_faults(directory: Path, receipt: Receipt) -> list[str]:
    sizes = file_sizes(directory)
    return [
        f"{entry.name} is missing"
        if entry.name not in sizes
        else f"{entry.name} holds {sizes[entry.name]:,} bytes instead of {entry.num_bytes:,}"
        for entry in receipt.files
        if sizes.get(entry.name) != entry.num_bytes
    ]


def _digest_faults(directory: Path, receipt: Receipt) -> list[str]:
    changed = [entry.name for entry in receipt.files if digest_file(directory / entry.name) != entry.sha256]
    return [f"{name} has other bytes than when it was committed" for name in changed]


def _this_process() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "host": node(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv)[:200],  # a data: URL may be megabytes long
    }


def _holder_in(holder_file: Path) -> str:
    """The holder in words. Its file may be a moment late, or left behind by a killed one."""
    try:
        holder = json.loads(holder_file.read_bytes())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']} ({holder['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process, which has not written its name yet"
