"""The files of a zip or folder: names, limits, one file read whole. Light: standard library only.

Nothing is ever unpacked to disk and no name from an archive becomes a path, so a hostile name can do no harm here; it
is refused all the same, because a dataset with such names was not made in good faith.
"""

from __future__ import annotations

import lzma
import os
import re
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

from cache.fingerprint import digest_bytes, digest_stream
from stages.contract import Member
from stages.errors import SourceUnreadable
from stages.ingest.faults import Unfit, as_text
from stages.ingest.source.limits import ArchiveLimits, over_limit, over_total
from stages.ingest.source.zip_directory import check_list_length, too_many_members

_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""Only these unpack in bounded steps: a few bytes of bzip2 or LZMA can become gigabytes in one."""
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)( *\..*)?", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What would move a terminal's cursor, or turn a name's direction of writing."""
_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}
_LOCAL_HEADER_BYTES = 30
_PACKING_BYTES = 1024
"""And one in a hundred: what deflate may add to what does not pack."""
_ENCRYPTED, _UTF8 = 0x1, 0x800
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_OTHER_ARCHIVES = {
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zX": "an xz archive",
    b"PK\x03\x04": "a zip that is cut short or damaged",
}
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError, struct.error)
"""What reading a damaged or unusual zip member raises (NotImplementedError, an unknown method, is a RuntimeError)."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One file as the archive declares it, before it is read."""

    name: str
    num_bytes: int
    place: zipfile.ZipInfo | Path
    unfit: Unfit | None = None


def is_junk(parts: tuple[str, ...]) -> bool:
    """Files that systems leave behind: dot files, `__MACOSX/`, Thumbs.db, desktop.ini."""
    return any(part.startswith(".") or part.lower() in _JUNK for part in parts)


@contextmanager
def opened_zip(path: Path, limits: ArchiveLimits | None = None) -> Iterator[zipfile.ZipFile]:
    """An open zip.

    Raises:
        SourceUnreadable: it is no zip, or its list of contents is damaged or too long.
    """
    check_list_length(path, limits or ArchiveLimits())
    try:
        archive = zipfile.ZipFile(path)
    except UnicodeDecodeError as error:
        why = "a name in its list of contents claims to be UTF-8 and is not"
        raise SourceUnreadable(path, why, "Pack the files again with a tool that writes UTF-8 names.") from error
    except _DAMAGE as error:
        raise _not_a_zip(path, error) from error
    with archive:
        yield archive


def _not_a_zip(path: Path, error: Exception) -> SourceUnreadable:
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError:
        return SourceUnreadable(path, str(error), "Check the path and its permissions.")
    kind = next((kind for magic, kind in _OTHER_ARCHIVES.items() if head.startswith(magic)), "not a zip")
    if head.startswith(b"PK"):
        return SourceUnreadable(path, f"it is {kind} ({error})", "Download or copy it again.")
    remedy = "Give a .zip, or the folder itself, with audio files and their .txt captions."
    return SourceUnreadable(path, f"it is {kind}", remedy)


def list_zip(archive: zipfile.ZipFile, limits: ArchiveLimits) -> list[Listed]:
    """Every file of a zip, sorted by name; nothing is read but the list of contents."""
    entries = [entry for entry in archive.infolist() if not entry.filename.endswith("/")]
    shared = overlapping(entries)
    found = [_listed_entry(entry, shared.get(id(entry)), limits) for entry in entries]
    return _within_total([listed for listed in found if listed is not None], limits)


def overlapping(entries: Sequence[zipfile.ZipInfo]) -> dict[int, str]:
    """By id, the entries whose bytes begin before the entry in front of them ends, and that one's name.

    Method: Fifield, "A better zip bomb" (2019): one packed part serves many entries.
    """
    shared: dict[int, str] = {}
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    for before, entry in pairwise(ordered):
        if entry.header_offset < before.header_offset + _LOCAL_HEADER_BYTES + before.compress_size:
            shared[id(entry)] = printable(before.filename)
            shared.setdefault(id(before), printable(entry.filename))
    return shared


def _listed_entry(entry: zipfile.ZipInfo, sharer: str | None, limits: ArchiveLimits) -> Listed | None:
    """One entry, or None for junk."""
    try:
        name, unfit = _entry_name(entry), None
    except Unfit as error:
        name, unfit = entry.filename, error
    name, bad_name = _safe_name(name)
    if bad_name is None and is_junk(tuple(name.split("/"))):
        return None
    unfit = bad_name or unfit or _unfit_entry(entry, limits)
    if sharer is not None and unfit is None:
        unfit = Unfit("overlapping_entries", other=sharer)
    if _CONTROL.search(name):
        name, unfit = printable(name), unfit or Unfit("name_not_printable")
    return Listed(name=name, num_bytes=entry.file_size, place=entry, unfit=unfit)


def printable(name: str) -> str:
    """The name with control characters spelled out: a terminal must not obey a dataset."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), name)


def _entry_name(entry: zipfile.ZipInfo) -> str:
    """The name as its writer meant it: flagged UTF-8, ASCII, or unflagged UTF-8 as several tools write it."""
    if entry.flag_bits & _UTF8:
        return entry.filename
    try:
        raw = entry.filename.encode("cp437")
        return _unicode_extra(entry.extra, raw) or raw.decode("utf-8")
    except UnicodeError:
        raise Unfit("name_not_utf8") from None


def _unicode_extra(extra: bytes, raw_name: bytes) -> str | None:
    """Info-ZIP's Unicode Path field (0x7075): version, crc32 of the plain name, the name in UTF-8."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        body, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == 0x7075 and body[:1] == b"\x01" and body[1:5] == struct.pack("<I", zlib.crc32(raw_name)):
            return body[5:].decode("utf-8")
    return None


def _safe_name(name: str) -> tuple[str, Unfit | None]:
    """The name with forward slashes and without `.` parts, and what is wrong with it."""
    if not name:
        return "(no name)", Unfit("name_not_printable")
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        return name, Unfit("absolute_name")
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts:
        return "/".join(parts), Unfit("path_traversal")
    device = any(_DEVICES.fullmatch(part) for part in parts)
    return "/".join(parts) or name, Unfit("device_name") if device else None


def _unfit_entry(entry: zipfile.ZipInfo, limits: ArchiveLimits) -> Unfit | None:
    """What a zip entry declares about itself that forbids reading it."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return Unfit("symlink")
    if kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK):
        return Unfit("not_a_file")
    if entry.flag_bits & _ENCRYPTED:
        return Unfit("encrypted")
    if entry.compress_type not in _METHODS:
        method = getattr(zipfile, "compressor_names", {}).get(entry.compress_type, str(entry.compress_type))
        return Unfit("compression_method", method=method)
    if entry.compress_size > entry.file_size + entry.file_size // 100 + _PACKING_BYTES:  # it would be read at once
        return Unfit(
            "member_unreadable", why=f"{entry.compress_size:,} bytes packed for {entry.file_size:,} plain ones"
        )
    return over_limit(entry.file_size, entry.compress_size, limits)


def list_folder(root: Path, limits: ArchiveLimits) -> list[Listed]:
    """Every file below a folder, sorted by name; links are listed, not followed."""
    found = list(islice(_below(root, (), limits), limits.max_members + 1))
    if len(found) > limits.max_members:
        raise too_many_members(root, limits)
    return _within_total(found, limits)


def _below(folder: Path, parts: tuple[str, ...], limits: ArchiveLimits) -> Iterator[Listed]:
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        if not parts:
            raise SourceUnreadable(folder, reason(error), "Check its permissions.") from error
        yield _listed_path(folder, parts, 0, Unfit("member_unreadable", why=reason(error)))
        return
    for entry in entries:
        inside = (*parts, entry.name)
        if is_junk(inside):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _below(Path(entry.path), inside, limits)
        else:
            yield _listed_file(entry, inside, limits)


def _listed_file(entry: os.DirEntry[str], parts: tuple[str, ...], limits: ArchiveLimits) -> Listed:
    path = Path(entry.path)
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        return _listed_path(path, parts, 0, Unfit("member_unreadable", why=reason(error)))
    unfit = None
    if stat.S_ISLNK(status.st_mode):
        unfit = Unfit("symlink")
    elif not stat.S_ISREG(status.st_mode):
        unfit = Unfit("not_a_file")  # opening a pipe would wait for ever
    return _listed_path(path, parts, status.st_size, unfit or over_limit(status.st_size, None, limits))


def _listed_path(path: Path, parts: tuple[str, ...], num_bytes: int, unfit: Unfit | None) -> Listed:
    name = "/".join(parts)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        name, unfit = os.fsencode(name).decode("utf-8", "backslashreplace"), unfit or Unfit("name_not_utf8")
    if _CONTROL.search(name):
        name, unfit = printable(name), unfit or Unfit("name_not_printable")
    return Listed(name=name, num_bytes=num_bytes, place=path, unfit=unfit)


def _within_total(found: list[Listed], limits: ArchiveLimits) -> list[Listed]:
    """Sorted by name; if all together are too large, none may be read."""
    unread = over_total(sum(listed.num_bytes for listed in found), limits)
    found = sorted(found, key=lambda listed: listed.name)
    return found if unread is None else [replace(one, unfit=one.unfit or unread) for one in found]


def member_of(listed: Listed, digest: Callable[[Listed], str]) -> Member:
    """The file with its digest, or with the fault that keeps it from being read."""
    packed = listed.place.compress_size if isinstance(listed.place, zipfile.ZipInfo) else None
    found, unfit = None, listed.unfit
    if unfit is None:
        try:
            found = digest(listed)
        except _DAMAGE as error:
            unfit = Unfit("member_unreadable", why=reason(error))
    fault = as_text(unfit.fault(listed.name)) if unfit else None
    return Member(name=listed.name, num_bytes=listed.num_bytes, packed_bytes=packed, digest=found, fault=fault)


def reason(error: Exception) -> str:
    """Why a file could not be read, in words that hold no path: results must not depend on where a dataset lies."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error) or type(error).__name__


def digest_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str:
    """`sha256:...` of one entry's bytes, read to the end so that its CRC is checked too; memory stays small."""
    with archive.open(entry) as file:
        digest = digest_stream(file)
        if file.tell() != entry.file_size:  # zipfile is content with less than was declared
            raise zipfile.BadZipFile(f"{entry.file_size:,} bytes were declared, {file.tell():,} are there")
        return digest


def read_member(source: Path, kind: str, member: Member) -> bytes:
    """All bytes of one file, which are those that were digested.

    Raises:
        Unfit: the file cannot be read any more, or has other bytes than when the dataset was listed.
    """
    try:
        data = _zip_bytes(source, member) if kind == "zip" else (source / member.name).read_bytes()
    except _DAMAGE as error:
        raise Unfit("member_unreadable", why=reason(error)) from error
    if digest_bytes(data) != member.digest:
        raise Unfit("member_changed")
    return data


def _zip_bytes(source: Path, member: Member) -> bytes:
    status = source.stat()
    archive, entries = _kept_open(source, status.st_size, status.st_mtime_ns)
    entry = entries.get(member.name)
    # Another entry of the same name may have declared any size, which would be read at once.
    if entry is None or (entry.file_size, entry.compress_size) != (member.num_bytes, member.packed_bytes):
        raise Unfit("member_changed")
    return archive.read(entry)


@lru_cache(maxsize=1)
def _kept_open(source: Path, size: int, mtime_ns: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """A zip and its entries by our names, kept between clips: a long list of contents costs more than a clip."""
    archive = zipfile.ZipFile(source)
    listed = list_zip(archive, ArchiveLimits())
    return archive, {one.name: one.place for one in listed if isinstance(one.place, zipfile.ZipInfo)}


def forget_open_archives() -> None:
    """Let go of the zip this process keeps open."""
    _kept_open.cache_clear()
