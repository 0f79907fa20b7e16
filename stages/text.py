"""Text from the bytes of a file, and what is no text though it is named so. Light: standard library only."""

from __future__ import annotations

import codecs
import json
import unicodedata

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FORMATS = (
    (b"{\\rtf", "an RTF document"),
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a zip, as .docx and .odt are"),
    (b"\xd0\xcf\x11\xe0", "a Word document"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<head", "a web page"),
    (b"<?xml", "an XML document"),
    (b"bplist00", "a property list of macOS"),
)
"""First bytes of files that are saved under the name of a text by mistake."""
_LFS_POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_LONGEST_LFS_POINTER = 1024
"""Source: the Git LFS pointer specification, which keeps pointers below 1024 bytes."""
_BLANKS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters that show nothing: fillers of Hangul, the empty braille cell."""
_PLAIN_CONTROLS = "\t\n\r"


class NotText(ValueError):
    """Bytes that are no text. The message says what they are, as in "it is ..."."""


class UnknownEncoding(NotText):
    """Text, perhaps, but in an encoding that is not read."""


def is_lfs_pointer(data: bytes) -> bool:
    """Whether a file is a Git LFS pointer, which stands for a file that was not downloaded."""
    return len(data) <= _LONGEST_LFS_POINTER and data.startswith(_LFS_POINTERS)


def decoded(data: bytes) -> str:
    """The text of a file, without its byte order mark.

    Raises:
        NotText: it is in no encoding that is read, or in the format of another program.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if (other := other_format(data)) is not None:
        raise NotText(other)
    if encoding == "utf-8" and (unmarked := _unmarked(data)) is not None:
        raise UnknownEncoding(f"{unmarked} without the byte order mark that says so")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise UnknownEncoding("not UTF-8" if encoding.startswith("utf-8") else f"damaged {encoding.upper()}") from None


def other_format(data: bytes) -> str | None:
    """What a file is by its first bytes, if those are of a format that is often saved under a wrong name."""
    head = data.removeprefix(codecs.BOM_UTF8)[:64].lstrip().lower()
    return next((name for magic, name in _FORMATS if head.startswith(magic.lower())), None)


def _unmarked(data: bytes) -> str | None:
    """UTF-32 or UTF-16 without a mark, by the NULs of its letters; None if it is neither."""
    whole = data[: len(data) // 4 * 4]
    letters = [whole[start : start + 4] for start in range(0, len(whole), 4)] if whole.count(0) * 2 > len(whole) else []
    for order, high in (("little-endian", slice(2, 4)), ("big-endian", slice(0, 2))):
        if letters and all(any(letter) and not any(letter[high]) for letter in letters):
            return f"UTF-32 ({order})"
    order16 = _utf16_order(data[: len(data) // 2 * 2])
    return None if order16 is None else f"UTF-16 ({order16})"


def _utf16_order(data: bytes) -> str | None:
    """The byte order of UTF-16 without a mark, by the NULs of its plain letters; None if it is no such text."""
    if len(data) < 2:
        return None
    for order, high in (("little-endian", data[1::2]), ("big-endian", data[::2])):
        low = data[::2] if order == "little-endian" else data[1::2]
        if high.count(0) * 2 >= len(high) and low.count(0) == 0:
            return order
    return None


def parsed_json(text: str) -> object:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, holds NaN or infinity, names a key twice, or is nested too deeply; in one line.
    """
    try:
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_object_of)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(str(error).partition("\n")[0]) from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"the key {twice} is there twice")
    return found


def control_character(text: str) -> str | None:
    """The first character that no text holds, in words; None if there is none.

    Those are control characters other than tab and line ends, and U+FFFD, which a program writes for a letter that it
    could not read.
    """
    for letter in text:
        if letter in ("\ufffd", "\ufffe", "\uffff"):
            return f"U+{ord(letter):04X}, which stands for a letter that was lost"
        if unicodedata.category(letter) == "Cs":
            return "half of a surrogate pair, or a byte that is not UTF-8"
        if unicodedata.category(letter) == "Cc" and letter not in _PLAIN_CONTROLS:
            return "NUL, as files do after a crash" if letter == "\0" else f"the control character U+{ord(letter):04X}"
    return None


def has_visible(text: str) -> bool:
    """Whether anything but spaces, control characters and invisible joiners is in a text."""
    return any(not (one.isspace() or one in _BLANKS or unicodedata.category(one) in ("Cc", "Cf")) for one in text)


def control_fault(text: str) -> str | None:
    """The rule of a field for plain text: what is wrong with it, or None."""
    wrong = control_character(text)
    return None if wrong is None else f"must be plain text; it holds {wrong}"
