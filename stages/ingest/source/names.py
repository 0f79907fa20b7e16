"""Names of files in a dataset: their encoding, which are refused, which systems write. Light: standard library only.

Source of the encodings: PKWARE APPNOTE, Appendix D (code page 437, or UTF-8 where bit 11 is set), and 4.6.9.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

from stages.ingest.faults import FileRejected

UTF8, CP437 = "utf-8", "cp437"
ON_WINDOWS = os.name == "nt"
_UTF8_FLAG = 0x800
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)( *\..*)?", re.IGNORECASE)
_ICLOUD = re.compile(r"\.(.+)\.icloud", re.IGNORECASE | re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Characters that move a terminal's cursor or change the direction of writing."""
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_SEPARATOR = re.compile(r"/|\\")
_CP437_SEPARATOR = re.compile(r"/|(?<![^\x00-\x7f])\\")
"""In a name of unknown encoding, 0x5C behind a byte above 0x7F may be half of a letter (Shift JIS, GBK, Big5)."""
_SYSTEM_NAMES = frozenset(
    {
        *(".ds_store", "__macosx", ".spotlight-v100", ".trashes", ".fseventsd", ".temporaryitems", ".apdisk"),
        *(".documentrevisions-v100", ".appledouble", ".appledb", ".appledesktop", ".localized", ".volumeicon.icns"),
        *(".com.apple.timemachine.donotpresent", "icon\r"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *(".directory", ".thumbnails", ".trash", "lost+found", "@eadir", "#recycle"),
    }
)
"""Files and folders that systems (macOS, Windows, Linux desktops, Synology) write by themselves, in lower case."""
_SYSTEM_PATTERN = re.compile(r"\._.*|\.trash-\d+|\.nfs[0-9a-f]{8,}|\.fuse_hidden[0-9a-f]+", re.DOTALL)
"""Others of them: AppleDouble files, which hold a Mac's own data about a file, bins, and files deleted while open."""
TOOL_FOLDERS = frozenset(
    {
        *(".git", ".hg", ".svn", ".bzr", ".venv", ".tox", ".nox", ".conda", ".cache", ".idea", ".vscode"),
        *(".ipynb_checkpoints", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".virtual_documents", ".dvc"),
    }
)
"""Folders that tools keep for themselves. They hold no clips of the user's, and may hold very many files."""


def is_system_file(parts: tuple[str, ...]) -> bool:
    """Whether an operating system wrote this file or one of its folders, by its decoded name."""
    return any(part.lower() in _SYSTEM_NAMES or _SYSTEM_PATTERN.fullmatch(part.lower()) for part in parts)


def has_hidden_part(name: str) -> bool:
    """Whether the name, or that of one of its folders, begins with a dot; not one that leads out of the archive."""
    parts = name.split("/")
    return ".." not in parts and any(part.startswith(".") for part in parts)


def printable(name: str) -> str:
    """The name with control characters escaped, so that it is safe to print to a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), name)


def checked_printable(name: str, rejection: FileRejected | None) -> tuple[str, FileRejected | None]:
    """A printable form of the name, and a reason to reject it if that is another."""
    if _CONTROL.search(name):
        return printable(name), rejection or FileRejected("name_not_printable")
    return name, rejection


def entry_name(entry: zipfile.ZipInfo) -> tuple[str, str]:
    """The name of a zip's entry and the encoding it was read in.

    Flagged UTF-8, Info-ZIP's field, ASCII, or UTF-8 without the flag, as several tools write it. Any other name is
    code page 437 by the format itself; where its writer meant another one it looks wrong, but each byte has its
    letter, so that equal bytes stay equal and others differ.
    """
    if entry.flag_bits & _UTF8_FLAG:
        return entry.filename, UTF8
    try:
        raw = entry.filename.encode(CP437)
        return _unicode_extra(entry.extra, raw) or raw.decode("utf-8"), UTF8
    except UnicodeError:
        return entry.filename, CP437


def file_name(name: str) -> tuple[str, str]:
    """The name of a file in a folder and the encoding it was read in, as `entry_name` for a zip."""
    raw = os.fsencode(name)
    try:
        return raw.decode(UTF8), UTF8
    except UnicodeDecodeError:
        return raw.decode(CP437), CP437


def path_in_folder(root: Path, name: str, encoding: str) -> Path:
    """The path of a file of a folder, by the name that `file_name` gives it."""
    return root / (os.fsdecode(name.encode(CP437)) if encoding == CP437 else name)


def not_downloaded(name: str) -> str | None:
    """The name of the file that a placeholder of iCloud (`.Kick.wav.icloud`) stands for; None for any other file."""
    folder, slash, last = name.rpartition("/")
    found = _ICLOUD.fullmatch(last)
    return f"{folder}{slash}{found[1]}" if found else None


def _unicode_extra(extra: bytes, raw_name: bytes) -> str | None:
    """Info-ZIP's Unicode Path field (0x7075): version, crc32 of the plain name, the name in UTF-8."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        body, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == 0x7075 and body[:1] == b"\x01" and body[1:5] == struct.pack("<I", zlib.crc32(raw_name)):
            return body[5:].decode("utf-8")
    return None


def safe_name(name: str, encoding: str = UTF8) -> tuple[str, FileRejected | None]:
    """The name with forward slashes and without `.` parts; the reason to reject it, if any."""
    if not name:
        return "(no name)", FileRejected("name_not_printable")
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        return name, FileRejected("absolute_name")
    separator = _CP437_SEPARATOR if encoding == CP437 else _SEPARATOR
    parts = [part for part in separator.split(name) if part not in ("", ".")]
    if ".." in _SEPARATOR.split(name):
        return "/".join(parts), FileRejected("path_traversal")
    return "/".join(parts) or name, FileRejected("device_name") if _is_device(parts) else None


def _is_device(parts: list[str]) -> bool:
    """Whether the name is that of a device here: `Aux/` is a folder like any other except on Windows."""
    return ON_WINDOWS and any(_DEVICES.fullmatch(part) for part in parts)
