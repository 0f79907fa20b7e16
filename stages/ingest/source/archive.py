"""Lists the files of a zip or folder, checks names and limits, reads single files. Light: standard library only.

Nothing is ever unpacked to disk and no name from an archive becomes a path, so a hostile name can do no harm here; it
is refused all the same, because a dataset with such names was not made in good faith.
"""

from __future__ import annotations

import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path

from cache.files.folder_mark import looks_like_store
from cache.fingerprint import digest_bytes, digest_stream
from stages.contract import Member
from stages.errors import SourceUnreadable
from stages.ingest.faults import FileRejected, as_line
from stages.ingest.file_types import ARCHIVES, CAPTION, READABLE, UNREADABLE, suffix
from stages.ingest.source.limits import ArchiveLimits, over_limit, over_total
from stages.ingest.source.names import (
    UTF8,
    checked_printable,
    entry_name,
    file_name,
    is_system_file,
    not_downloaded,
    path_in_folder,
    printable,
    safe_name,
)
from stages.ingest.source.no_zip import other_source
from stages.ingest.source.not_data import folders_without_data, not_data, outermost
from stages.ingest.source.zip_directory import check_directory_size, split_zip, too_many_members
from stages.text import is_lfs_pointer

_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""Only these decompress in bounded steps: a few bytes of bzip2 or LZMA can become gigabytes in one."""
_LOCAL_HEADER_BYTES = 30
_DEFLATE_OVERHEAD_BYTES = 1024
"""With 1 % of the size, the most that deflate adds to content that does not compress."""
_ENCRYPTED = 0x1
READ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    struct.error,
)
"""Errors raised by reading a damaged or unusual zip member (NotImplementedError, for an unknown method, is a
RuntimeError)."""


@dataclass(frozen=True, kw_only=True)
class ListedFile:
    """One file as the zip or folder lists it, before it is read."""

    name: str
    num_bytes: int
    location: zipfile.ZipInfo | Path
    rejection: FileRejected | None = None
    name_encoding: str = UTF8


@contextmanager
def opened_zip(path: Path, limits: ArchiveLimits | None = None) -> Iterator[zipfile.ZipFile]:
    """An open zip.

    Raises:
        SourceUnreadable: it is not a zip, or its central directory is damaged or too large.
    """
    if (part := split_zip(path)) is not None:
        raise part
    check_directory_size(path, limits or ArchiveLimits())
    try:
        archive = zipfile.ZipFile(path)
    except UnicodeDecodeError as error:
        why = "a name in its list of contents claims to be UTF-8 and is not"
        raise SourceUnreadable(path, why, "Pack the files again with a tool that writes UTF-8 names.") from error
    except READ_ERRORS as error:
        raise _not_a_zip(path, error) from error
    with archive:
        yield archive


def _not_a_zip(path: Path, error: Exception) -> SourceUnreadable:
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError:
        return SourceUnreadable(path, str(error), "Check the path and its permissions.")
    if is_lfs_pointer(head):
        return SourceUnreadable(path, "it is a Git LFS pointer, not the file itself", "Fetch it with `git lfs pull`.")
    if head.startswith(b"PK"):
        return SourceUnreadable(
            path, f"it is a zip that is cut short or damaged ({error})", "Download or copy it again."
        )
    return SourceUnreadable(path, *other_source(head, path.name))


def list_zip(archive: zipfile.ZipFile, limits: ArchiveLimits) -> list[ListedFile]:
    """Every file of a zip, sorted by name; only the central directory is read."""
    entries = [entry for entry in archive.infolist() if not entry.filename.endswith("/")]
    shared = overlapping_entries(entries)
    found = [_listed_entry(entry, shared.get(id(entry)), limits) for entry in entries]
    listed = _without_other_folders([one for one in found if one is not None], archive.filename or "")
    return _within_total(listed, limits)


def _without_other_folders(files: Sequence[ListedFile], archive: str) -> list[ListedFile]:
    """The files, with one entry for each folder that holds no data in place of its files."""
    parts = [tuple(one.name.split("/")) for one in files]
    folders = folders_without_data(parts)
    if () in folders:
        raise _is_a_store(Path(archive))
    kept: dict[object, ListedFile] = {}
    for one, names in zip(files, parts, strict=True):
        folder = outermost(names, folders)
        if folder is None:
            kept[id(one)] = one
        else:
            rejection = FileRejected(folders[folder])
            kept[folder] = ListedFile(
                name=f"{'/'.join(folder)}/", num_bytes=0, location=one.location, rejection=rejection
            )
    return list(kept.values())


def _is_a_store(path: Path) -> SourceUnreadable:
    why = "it is a store of sa3-trainer, with results and no clips of its own"
    return SourceUnreadable(path, why, "Give the folder or .zip with your clips.")


def overlapping_entries(entries: Sequence[zipfile.ZipInfo]) -> dict[int, str]:
    """The entries (by id) whose bytes overlap another entry's, and the name of that one.

    Source: Fifield, "A better zip bomb" (2019), in which many entries share one compressed stream.
    """
    shared: dict[int, str] = {}
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    for before, entry in pairwise(ordered):
        if entry.header_offset < before.header_offset + _LOCAL_HEADER_BYTES + before.compress_size:
            shared[id(entry)] = printable(before.filename)
            shared.setdefault(id(before), printable(entry.filename))
    return shared


def _listed_entry(entry: zipfile.ZipInfo, sharer: str | None, limits: ArchiveLimits) -> ListedFile | None:
    """One entry; None for a system's own file."""
    name, encoding = entry_name(entry)
    name, bad_name = safe_name(name, encoding)
    if bad_name is None and is_system_file(tuple(name.split("/"))):
        return None
    rejection = bad_name or _unfit_entry(entry, limits)
    if sharer is not None and rejection is None:
        rejection = FileRejected("overlapping_entries", other=sharer)
    name, rejection = checked_printable(*_of_placeholder(name, rejection))
    return ListedFile(name=name, num_bytes=entry.file_size, location=entry, rejection=rejection, name_encoding=encoding)


def _unfit_entry(entry: zipfile.ZipInfo, limits: ArchiveLimits) -> FileRejected | None:
    """Why an entry may not be read, from what it declares about itself; None if it may."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return FileRejected("symlink")
    if kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK):
        return FileRejected("not_a_file")
    if entry.flag_bits & _ENCRYPTED:
        return FileRejected("encrypted")
    if entry.compress_type not in _METHODS:
        method = getattr(zipfile, "compressor_names", {}).get(entry.compress_type, str(entry.compress_type))
        return FileRejected("compression_method", method=method)
    if (
        entry.compress_size > entry.file_size + entry.file_size // 100 + _DEFLATE_OVERHEAD_BYTES
    ):  # zipfile would read it at once
        return FileRejected(
            "member_unreadable", why=f"{entry.compress_size:,} bytes packed for {entry.file_size:,} plain ones"
        )
    return over_limit(entry.file_size, entry.compress_size, limits)


def list_folder(root: Path, limits: ArchiveLimits) -> list[ListedFile]:
    """Every file below a folder, sorted by name; links are followed, as it is the user's own folder."""
    found = list(islice(_below(root, (), limits, ()), limits.max_members + 1))
    if len(found) > limits.max_members:
        raise too_many_members(root, limits)
    return _within_total(found, limits)


def _below(
    folder: Path, parts: tuple[str, ...], limits: ArchiveLimits, above: tuple[tuple[int, int], ...]
) -> Iterator[ListedFile]:
    """The files below a folder.

    Args:
        above: (device, inode) of each folder on the way down, by which a link that leads back is noticed.
    """
    try:
        status = folder.stat()
        above = (*above, (status.st_dev, status.st_ino))
        if above[-1] in above[:-1]:
            yield _listed_path(folder, parts, 0, FileRejected("link_loop"))
            return
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        if not parts:
            raise SourceUnreadable(folder, read_error_text(error), "Check its permissions.") from error
        yield _listed_path(folder, parts, 0, FileRejected("member_unreadable", why=read_error_text(error)))
        return
    names = {entry.name for entry in entries}
    if not parts and looks_like_store(names):
        raise _is_a_store(folder)
    if parts and (reason := not_data(parts, names)) is not None:
        yield _listed_path(folder, (*parts, ""), 0, FileRejected(reason))
        return
    for entry in entries:
        inside = (*parts, entry.name)
        if is_system_file(inside):
            continue
        # A link to itself is an error of DirEntry's own is_dir.
        if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry.path).is_dir()):
            yield from _below(Path(entry.path), inside, limits, above)
        else:
            yield _listed_file(entry, inside, limits)


def _listed_file(entry: os.DirEntry[str], parts: tuple[str, ...], limits: ArchiveLimits) -> ListedFile:
    path = Path(entry.path)
    try:
        status = entry.stat()
    except OSError as error:
        unread = FileRejected("member_unreadable", why=read_error_text(error))
        return _listed_path(path, parts, 0, FileRejected("dangling_link") if entry.is_symlink() else unread)
    rejection = None
    if not stat.S_ISREG(status.st_mode):
        rejection = FileRejected("not_a_file")  # opening a pipe would block
    return _listed_path(path, parts, status.st_size, rejection or over_limit(status.st_size, None, limits))


def _listed_path(path: Path, parts: tuple[str, ...], num_bytes: int, rejection: FileRejected | None) -> ListedFile:
    name, encoding = file_name("/".join(parts))
    name, rejection = _of_placeholder(name, rejection)
    name, rejection = checked_printable(name, rejection)
    return ListedFile(name=name, num_bytes=num_bytes, location=path, rejection=rejection, name_encoding=encoding)


def _of_placeholder(name: str, rejection: FileRejected | None) -> tuple[str, FileRejected | None]:
    """The name of the clip or caption that a placeholder stands for, and the fault that it is not there."""
    meant = not_downloaded(name)
    if meant is None or suffix(meant) not in READABLE | UNREADABLE | ARCHIVES | {CAPTION}:
        return name, rejection
    return meant, rejection or FileRejected("not_downloaded")


def _within_total(found: list[ListedFile], limits: ArchiveLimits) -> list[ListedFile]:
    """The files sorted by name; if their total size is over the limit, none may be read."""
    unread = over_total(sum(listed.num_bytes for listed in found), limits)
    found = sorted(found, key=lambda listed: listed.name)
    return found if unread is None else [replace(one, rejection=one.rejection or unread) for one in found]


def as_member(listed: ListedFile, digest: Callable[[ListedFile], str]) -> Member:
    """The file with its digest, or with the fault that keeps it from being read."""
    packed = listed.location.compress_size if isinstance(listed.location, zipfile.ZipInfo) else None
    known_digest, rejection = None, listed.rejection
    if rejection is None:
        try:
            known_digest = digest(listed)
        except READ_ERRORS as error:
            rejection = FileRejected("member_unreadable", why=read_error_text(error))
    fault = as_line(rejection.fault(listed.name)) if rejection else None
    return Member(
        name=listed.name,
        num_bytes=listed.num_bytes,
        packed_bytes=packed,
        digest=known_digest,
        fault=fault,
        name_encoding=listed.name_encoding,
    )


def read_error_text(error: Exception) -> str:
    """Why a file could not be read, without its path: results must not depend on where a dataset lies."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error) or type(error).__name__


def digest_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str:
    """`sha256:...` of one entry's bytes, read to the end so that its CRC is checked too; memory stays small."""
    with archive.open(entry) as file:
        digest = digest_stream(file)
        if file.tell() != entry.file_size:  # zipfile accepts less than was declared
            raise zipfile.BadZipFile(f"{entry.file_size:,} bytes were declared, {file.tell():,} are there")
        return digest


def read_member(source: Path, kind: str, member: Member) -> bytes:
    """All bytes of one file, whose digest is that of the listing.

    Raises:
        FileRejected: the file can no longer be read, has changed since the dataset was listed, or is a Git LFS pointer.
    """
    try:
        data = _zip_bytes(source, member) if kind == "zip" else _file_bytes(source, member)
    except READ_ERRORS as error:
        raise FileRejected("member_unreadable", why=read_error_text(error)) from error
    if digest_bytes(data) != member.digest:
        raise FileRejected("member_changed")
    if is_lfs_pointer(data):
        raise FileRejected("lfs_pointer")
    return data


def _file_bytes(folder: Path, member: Member) -> bytes:
    return path_in_folder(folder, member.name, member.name_encoding).read_bytes()


def _zip_bytes(source: Path, member: Member) -> bytes:
    status = source.stat()
    archive, entries = _cached_archive(source, status.st_size, status.st_mtime_ns)
    entry = entries.get(member.name)
    # Another entry of the same name may declare any size, which would be read at once.
    if entry is None or (entry.file_size, entry.compress_size) != (member.num_bytes, member.packed_bytes):
        raise FileRejected("member_changed")
    return archive.read(entry)


@lru_cache(maxsize=1)
def _cached_archive(source: Path, size: int, mtime_ns: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """An open zip and its entries by listed name, kept between clips as its directory may cost more than a clip."""
    archive = zipfile.ZipFile(source)
    listed = list_zip(archive, ArchiveLimits())
    return archive, {one.name: one.location for one in listed if isinstance(one.location, zipfile.ZipInfo)}


def close_archives() -> None:
    """Close the zip that this process keeps open."""
    _cached_archive.cache_clear()
