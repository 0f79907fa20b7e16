"""Turns errors of the system about paths and memory into one line: which path, why, and what to do.

Light: standard library only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cache.errors import WriteFailed
from cache.files.atomic_files import failure_reason, temporary_beside
from pipeline.errors import MemoryUsedUp, PathFailed

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ESHUTDOWN)
_SYSTEM = (*_FULL, *_NOT_ALLOWED, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP)
"""What is never a bug of ours, whatever the path. A path that is gone is none only in the folders of a request."""
_NO_MEMORY = ("cannot allocate memory", "can't allocate memory", "failed to map segment", "can't start new thread")
"""How libraries say it; in lower case."""
_FAILED_INSIDE = ("SystemError", "PanicException")


@contextmanager
def path_errors(folders: Mapping[str, Path | None]) -> Iterator[None]:
    """Turns errors of the system inside the block into the project's own.

    Args:
        folders: by the option that names each, such as `--store`. Those of open files, which name no path, are taken
            to concern the first.

    Raises:
        PathFailed: instead of an OSError.
        WriteFailed: with the option of the folder that was written to.
    """
    try:
        yield
    except WriteFailed as error:
        flag = _flag_of(error.file, folders) or error.flag
        raise WriteFailed(error.file, error.why, error.free_bytes, flag) from error
    except OSError as error:
        if (failed := _path_failed(error, folders)) is None:
            raise
        raise failed from error


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns the many forms of "no memory" into one. Raises: MemoryUsedUp."""
    try:
        yield
    except BaseException as error:
        said = str(error).strip()
        if not _is_of_memory(error, said.lower()):
            raise
        raise MemoryUsedUp(said.splitlines()[0] if said else type(error).__name__) from error


def _is_of_memory(error: BaseException, said: str) -> bool:
    """Whether an error means that there is no memory.

    An allocation that fails inside the interpreter or inside a library written in Rust is a SystemError or a
    PanicException, whatever else those may mean: they are taken for it where this process is limited.
    """
    if isinstance(error, MemoryError) or (type(error).__name__ in _FAILED_INSIDE and _is_limited()):
        return True
    return isinstance(error, ImportError | RuntimeError | OSError) and any(words in said for words in _NO_MEMORY)


def _is_limited() -> bool:
    try:
        import resource  # deferred: there is none on Windows
    except ImportError:
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def why_not_writable(folder: Path) -> str | None:
    """Why no file can be made in a folder, which is made where it is missing; None where one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _make_a_file(folder)
    except OSError as error:
        return failure_reason(folder, error)[0]
    return None


def _make_a_file(folder: Path) -> None:
    """Make a file without a name, which a killed process leaves nowhere; where that is not possible, one that goes."""
    if hasattr(os, "O_TMPFILE"):
        try:
            os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600))
            return
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT):
                raise
    probe = temporary_beside(folder / ".writable")  # another command may be trying the same folder
    probe.write_bytes(b"")
    probe.unlink()


def _path_failed(error: OSError, folders: Mapping[str, Path | None]) -> PathFailed | None:
    """The error in the user's terms; None where it may be a bug."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    flag = _flag_of(path, folders) if path is not None else None
    if error.errno not in _SYSTEM and not (flag and error.errno is not None):
        return None
    if path is None and error.errno in (*_FULL, errno.EIO):  # of a file that is open
        flag, path = next(((flag, folder) for flag, folder in folders.items() if folder is not None), (None, None))
    if path is None:
        return None
    why, free = failure_reason(path, error)
    left = f" ({free / 1e6:,.0f} MB are free there)" if free is not None and error.errno in _FULL else ""
    return PathFailed(path, f"{why}{left}", _remedy(error, flag))


def _flag_of(path: Path, folders: Mapping[str, Path | None]) -> str | None:
    """The option that names the innermost folder a path lies in."""
    inside = {
        flag: folder.absolute() for flag, folder in folders.items() if folder and _is_inside(path.absolute(), folder)
    }
    return max(inside, key=lambda flag: len(inside[flag].parts), default=None)


def _is_inside(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder.absolute())


def _remedy(error: OSError, flag: str | None) -> str:
    other = f", or name another place with {flag}" if flag else ""
    again = "then run the same command again: finished work is kept."
    if error.errno in _FULL:
        return f"Free some space there{other}, {again}"
    if error.errno == errno.EROFS:
        return f"This command must write there: mount it for writing{other}, {again}"
    if error.errno in _NOT_ALLOWED:
        return f"It may belong to another user: run as its owner or change its permissions{other}, {again}"
    if error.errno in _GONE:
        return f"It was removed or unmounted while it was in use: bring it back{other}, {again}"
    return f"Check that place and its disk{other}, {again}"
