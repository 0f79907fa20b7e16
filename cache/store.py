"""Finished artifacts by fingerprint, with one writer at a time for each. Light: standard library only.

    <root>/<stage>/<fingerprint>/        an artifact: its files and receipt.json
    <root>/scratch/<stage>-<identity>/   what a run has made so far; the same run continues there
    <root>/shared/<pool>/                content-addressed, immutable files that artifacts share
    <root>/locks/                        lock files, and the process that holds each

Commit = fsync every file, write receipt.json last, rename the folder into place. A folder without a receipt does not
count as an artifact. Folder names are the first 32 of 64 hex digits; the receipt holds all of them.
"""

from __future__ import annotations

import errno
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

from cache.errors import ArtifactDamaged, LockHeld, ReceiptDamaged, WriteFailed
from cache.files.atomic_files import (
    atomic_write_bytes,
    fsync_directory,
    fsync_file,
    remove_stale_temporaries,
    write_failure,
)
from cache.fingerprint import digest_file
from cache.receipt import FileEntry, Receipt, read_receipt

RECEIPT = "receipt.json"
NAME_DIGITS = 32
_ARTIFACT_NAME = re.compile(rf"[0-9a-f]{{{NAME_DIGITS}}}")
"""Folders of other names, such as a copy that somebody made beside an artifact, are none."""
_RESERVED = ("scratch", "shared", "locks")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes on disk, by folder."""

    artifacts: dict[str, int]
    """Bytes of artifacts, by `<stage>/<first 32 digits>`."""
    shared: dict[str, int]
    """Bytes of shared files, by pool: `latents`, `prompts`, `prepared`."""
    scratch: dict[str, int]
    """Bytes of unfinished runs, by `<stage>-<first 32 digits of the identity>`."""

    @property
    def total(self) -> int:
        """Bytes of everything together."""
        return sum(sum(part.values()) for part in (self.artifacts, self.shared, self.scratch))


class Store:
    """A folder of finished artifacts. Nothing is written outside it, and reading never creates it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    @property
    def shared(self) -> Path:
        """Root of the shared pools."""
        return self.root / "shared"

    @property
    def scratch_root(self) -> Path:
        """Root of the scratch folders of unfinished runs."""
        return self.root / "scratch"

    def directory(self, stage: str, fingerprint: str) -> Path:
        """The folder of an artifact, whether it exists or not."""
        return self.root / _stage_name(stage) / _short(fingerprint)

    def scratch(self, stage: str, identity: str) -> Path:
        """The scratch folder of a run, whether it exists or not."""
        return self.scratch_root / f"{_stage_name(stage)}-{_short(identity)}"

    def find(self, stage: str, fingerprint: str) -> Receipt | None:
        """The receipt of a finished artifact, or None. Costs one small read, and one stat per file.

        Raises:
            ReceiptDamaged: the receipt is damaged, or is that of another artifact.
            ArtifactDamaged: a file is missing or has another size (`differences` compares the content).
        """
        directory = self.directory(stage, fingerprint)
        try:
            receipt = read_receipt(directory / RECEIPT)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if (receipt.stage, receipt.fingerprint) != (stage, fingerprint):
            raise ReceiptDamaged(directory / RECEIPT, _is_that_of(receipt))
        differences = _size_differences(directory, receipt)
        if differences:
            raise ArtifactDamaged(directory, differences)
        return receipt

    def differences(self, receipt: Receipt) -> list[str]:
        """Differences between an artifact's files and its receipt; reads every byte. Empty when there are none."""
        directory = self.directory(receipt.stage, receipt.fingerprint)
        wrong_size = _size_differences(directory, receipt)
        listed = {RECEIPT, *(entry.name for entry in receipt.files)}
        extra = [f"{name} is not listed in the receipt" for name in sorted(file_sizes(directory)) if name not in listed]
        return wrong_size + extra + ([] if wrong_size else _digest_differences(directory, receipt))

    def check(self, receipt: Receipt) -> None:
        """Compares every byte of an artifact with its receipt, before its files are used.

        Raises:
            ArtifactDamaged: a file is missing or has other bytes; a file that is not listed does no harm.
        """
        directory = self.directory(receipt.stage, receipt.fingerprint)
        if wrong := _size_differences(directory, receipt) or _digest_differences(directory, receipt):
            raise ArtifactDamaged(directory, wrong)

    def receipts(
        self, stage: str | None = None, on_damage: Callable[[ReceiptDamaged], None] | None = None
    ) -> list[Receipt]:
        """Receipts of all artifacts, or of those of one stage, newest first.

        Args:
            on_damage: called with the error of each damaged receipt, which is left out; without it the error is raised.
        """
        found = []
        for directory in self._artifact_directories(stage):
            try:
                found.append(_receipt_in(directory))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except ReceiptDamaged as error:
                if on_damage is None:
                    raise
                on_damage(error)
        return sorted(found, key=lambda receipt: (receipt.finished, receipt.fingerprint), reverse=True)

    def folders_without_receipt(self) -> list[Path]:
        """Folders of artifacts that hold files and no receipt, which do not count as artifacts."""
        folders = self._artifact_directories(None)
        return [folder for folder in folders if not os.path.lexists(folder / RECEIPT) and any(folder.iterdir())]

    def commit(self, stage: str, fingerprint: str, scratch: Path, receipt: Receipt) -> Receipt:
        """Turns a scratch folder into an artifact; returns the receipt with its list of files.

        An artifact that exists already is kept, and the scratch folder removed: the same name means the same content.
        The caller holds the lock of the run.

        Raises:
            WriteFailed: the disk is full; the scratch folder is kept and nothing is committed.
        """
        if (receipt.stage, receipt.fingerprint) != (stage, fingerprint):
            raise ValueError(
                f"the receipt of {receipt.stage} {receipt.fingerprint} cannot commit {stage} {fingerprint}"
            )
        existing = self.find(stage, fingerprint)
        if existing is not None:
            shutil.rmtree(scratch)
            return existing
        try:
            complete = _write_receipt(scratch, receipt)
            self._move_into_place(scratch, self.directory(stage, fingerprint))
        except OSError as error:
            raise write_failure(self.directory(stage, fingerprint), error) from error
        return complete

    def drop(self, stage: str, fingerprint: str) -> None:
        """Deletes an artifact, its receipt first, so that a kill in between leaves no artifact."""
        directory = self.directory(stage, fingerprint)
        (directory / RECEIPT).unlink(missing_ok=True)
        if directory.exists():
            shutil.rmtree(directory)

    @contextmanager
    def lock(self, stage: str, identity: str) -> Iterator[None]:
        """Holds the lock of a run identity during the block. It is released when the holding process dies, however.

        Raises:
            LockHeld: names the holder's process, host, start time and command.
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
            raise LockHeld(f"{stage} {identity[:16]}", _holder(holder_file)) from None
        try:
            _name_holder(holder_file)
            yield
        finally:
            with suppress(OSError):
                holder_file.unlink()
            lock.release()

    def sizes(self) -> Sizes:
        """Bytes of every artifact, pool and unfinished run, from one walk over the folder that opens no file."""
        artifacts = {f"{path.parent.name}/{path.name}": folder_bytes(path) for path in self._artifact_directories(None)}
        return Sizes(
            artifacts=artifacts,
            shared={path.name: folder_bytes(path) for path in _folders(self.shared)},
            scratch={path.name: folder_bytes(path) for path in _folders(self.scratch_root)},
        )

    def _artifact_directories(self, stage: str | None) -> list[Path]:
        stages = [path for path in _folders(self.root) if path.name not in _RESERVED]
        if stage is not None:
            stages = [path for path in stages if path.name == _stage_name(stage)]
        return [folder for path in stages for folder in _folders(path) if _ARTIFACT_NAME.fullmatch(folder.name)]

    def _move_into_place(self, scratch: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # without a receipt, or `find` would have returned it: an interrupted deletion
            shutil.rmtree(target)
        scratch.replace(target)
        for folder in (target.parent, scratch.parent, self.root):
            fsync_directory(folder)


def iter_file_sizes(folder: Path) -> Iterator[tuple[str, int]]:
    """(path inside the folder with forward slashes, bytes) of every file below it, in constant memory."""
    subfolders = [""]
    while subfolders:
        subfolder = subfolders.pop()
        with suppress(FileNotFoundError), os.scandir(folder / subfolder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    subfolders.append(f"{subfolder}{entry.name}/")
                    continue
                with suppress(FileNotFoundError):  # a temporary file renamed or removed since it was listed
                    yield f"{subfolder}{entry.name}", entry.stat(follow_symlinks=False).st_size


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder, by path inside it with forward slashes; empty without a folder."""
    return dict(iter_file_sizes(folder))


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(size for _, size in iter_file_sizes(folder))


def _stage_name(stage: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", stage) or stage in _RESERVED:
        raise ValueError(f"a stage's name is lower-case letters, and not {', '.join(_RESERVED)}; got {stage!r}")
    return stage


def _receipt_in(directory: Path) -> Receipt:
    """The receipt of the artifact in a folder. Raises: FileNotFoundError, ReceiptDamaged."""
    receipt = read_receipt(directory / RECEIPT)
    if (directory.parent.name, directory.name) != (receipt.stage, receipt.fingerprint[:NAME_DIGITS]):
        raise ReceiptDamaged(directory / RECEIPT, _is_that_of(receipt))
    return receipt


def _is_that_of(receipt: Receipt) -> str:
    return f"it is that of {receipt.stage} {receipt.fingerprint}"


def _short(fingerprint: str) -> str:
    """The folder name of a fingerprint. The check keeps paths inside the root: no fingerprint holds a slash."""
    if not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
        raise ValueError(f"a fingerprint is 64 hex digits; got {fingerprint!r}")
    return fingerprint[:NAME_DIGITS]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _write_receipt(scratch: Path, receipt: Receipt) -> Receipt:
    """Fsyncs everything in the scratch folder, then writes the receipt with the list of files."""
    (scratch / RECEIPT).unlink(missing_ok=True)  # left by a commit that was killed before its rename
    folders = [scratch, *(path for path in scratch.rglob("*") if path.is_dir())]
    for folder in folders:
        remove_stale_temporaries(folder)
    files = tuple(_entry(scratch, name) for name in sorted(file_sizes(scratch)))
    for folder in folders:
        fsync_directory(folder)
    text = replace(receipt, files=files).to_json()
    atomic_write_bytes(scratch / RECEIPT, text.encode())
    return Receipt.from_json(text, scratch / RECEIPT)


def _entry(scratch: Path, name: str) -> FileEntry:
    path = scratch / name
    if path.is_symlink() or not path.is_file() or name.endswith(".tmp"):
        raise ValueError(f"{path} cannot be part of an artifact: only finished regular files can")
    fsync_file(path)
    return FileEntry(name=name, num_bytes=path.stat().st_size, sha256=digest_file(path))


def _size_differences(directory: Path, receipt: Receipt) -> list[str]:
    sizes = file_sizes(directory)
    return [
        f"{entry.name} is missing"
        if entry.name not in sizes
        else f"{entry.name} holds {sizes[entry.name]:,} bytes instead of {entry.num_bytes:,}"
        for entry in receipt.files
        if sizes.get(entry.name) != entry.num_bytes
    ]


def _digest_differences(directory: Path, receipt: Receipt) -> list[str]:
    changed = [entry.name for entry in receipt.files if digest_file(directory / entry.name) != entry.sha256]
    return [f"{name} has other bytes than when it was committed" for name in changed]


def _this_process() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "host": node(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv)[:200],  # a data: URL may be megabytes long
    }


def _name_holder(holder_file: Path) -> None:
    """Tell others who holds a lock. On a full disk it is held without a name: what holds it may be about to free some.

    Raises:
        WriteFailed: for any other reason.
    """
    try:
        atomic_write_bytes(holder_file, json.dumps(_this_process()).encode())
    except WriteFailed as error:
        if getattr(error.__cause__, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            raise


def _holder(holder_file: Path) -> str:
    """Description of the holding process. The file may not be written yet, or be left behind by a killed process."""
    try:
        holder = json.loads(holder_file.read_bytes())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']} ({holder['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process that has not identified itself yet"
