"""What a file is that was given as a dataset and is no zip, and what to do. Light: standard library only."""

from __future__ import annotations

import shlex
from pathlib import PurePath

from stages.ingest.audio_content import is_for_libsndfile, kind_for_pyav
from stages.text import other_format

_TAR_AT = 257
_UNPACKED_BY = {
    b"Rar!": ("a RAR archive", "unrar x {}"),
    b"7z\xbc\xaf": ("a 7z archive", "7z x {}"),
    b"\x1f\x8b": ("compressed with gzip", "tar xzf {}"),
    b"BZh": ("compressed with bzip2", "tar xjf {}"),
    b"\xfd7zX": ("compressed with xz", "tar xJf {}"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "tar xf {}"),
    b"\x04\x22\x4d\x18": ("compressed with LZ4", "lz4 -d {}"),
    b"MSCF": ("a Windows cabinet", "7z x {}"),
    b"xar!": ("a xar archive", "7z x {}"),
}
"""Archives by their first bytes, with the command that unpacks one."""
_TAR = ("a tar archive", "tar xf {}")
HEAD_BYTES = 1024
"""How much of a file `other_source` looks at."""


def other_source(head: bytes, name: str) -> tuple[str, str]:
    """What the file is, as in "it is ...", and what to do.

    Args:
        head: its first HEAD_BYTES.
    """
    kind, command = _TAR if head[_TAR_AT : _TAR_AT + 5] == b"ustar" else _archive(head)
    if command.startswith("tar x") and kind.startswith("compressed") and not _is_tar(name):
        command = "7z x {}"
    if command:
        return f"it is {kind}", f"Unpack it, with `{command.format(shlex.quote(name))}` say, and give the folder."
    if not head:
        return "it is empty: 0 bytes", "Copy or download it again."
    if is_web_page(head):
        return "it is a web page, not the file itself", _OF_A_WEB_PAGE
    if is_for_libsndfile(head) or kind_for_pyav(head) is not None:
        return "it is a sound file", "Give the folder it lies in, with a .txt caption beside each sound."
    what = other_format(head)
    return (
        f"it is {what or 'not a zip'}",
        "Give a .zip, or the folder itself, with audio files and their .txt captions.",
    )


_OF_A_WEB_PAGE = (
    "The address leads to a page about the file, or to an error or a login: download the file in a browser, or give "
    "the address that ends in the download itself."
)


def _archive(head: bytes) -> tuple[str, str]:
    return next((found for magic, found in _UNPACKED_BY.items() if head.startswith(magic)), ("", ""))


def _is_tar(name: str) -> bool:
    """Whether a compressed file is a tar archive, by its name."""
    return bool({".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst"} & {*PurePath(name.lower()).suffixes})


def is_web_page(head: bytes) -> bool:
    """Whether a file is HTML, which a server sends in place of a file that it does not hand out."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    is_xhtml = text.startswith((b"<?xml", b"<!--")) and b"<html" in text
    return other_format(head) == "a web page" or is_xhtml
