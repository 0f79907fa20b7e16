"""Captions from one table of the dataset: metadata.csv or metadata.jsonl, with a file and a caption column.

Light: standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from posixpath import basename, dirname, join, normpath

from stages.contract import Member, Source
from stages.errors import Fault
from stages.ingest.captions.pairing import storable_text
from stages.ingest.captions.table_rows import CAPTION_COLUMNS, FILE_COLUMNS, Row, TableInvalid, table_rows, text_of
from stages.ingest.faults import FileRejected, fault
from stages.ingest.file_types import TABLES, pairing_key, suffix
from stages.ingest.source.archive import read_member
from stages.text import NotText, decoded


@dataclass(kw_only=True)
class CaptionTable:
    """The captions by the name of the audio file, and what is wrong with rows of the table."""

    captions: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    """Audio files whose row has a fault."""
    is_read: bool = False
    """The whole table was read, so that what it lacks is lacking."""


class _RowInvalid(ValueError):
    """A row that gives no caption; the message says why."""


def read_caption_table(source: Source, name: str, audio: Sequence[Member]) -> CaptionTable:
    """Read the table of that name; every row that names no audio file, or one twice, is a fault."""
    found = CaptionTable()
    member = next((one for one in source.members if one.name == name), None)
    if member is None:
        found.faults.append(fault("", "caption_table_missing", name=name, near=_tables_there(source)))
        return found
    names = _AudioNames(source, dirname(name), [one.name for one in audio])
    try:
        for row in table_rows(name, decoded(read_member(source.path, source.kind, member))):
            _add(found, row, name, names)
        found.is_read = True
    except NotText as error:
        found.faults.append(fault(name, "caption_table_invalid", why=f"it is {error}"))
    except TableInvalid as error:
        found.faults.append(fault(name, "caption_table_invalid", why=str(error)))
    except FileRejected as rejection:
        found.faults.append(rejection.fault(name))
    return found


def _tables_there(source: Source) -> str:
    there = sorted(one.name for one in (*source.members, *source.others) if suffix(one.name) in TABLES)
    return f" (it holds {', '.join(there[:3])})" if there else ""


def _add(found: CaptionTable, row: Row, table: str, names: _AudioNames) -> None:
    """Take one row into the table, or its fault."""
    name = None
    try:
        name = names.of_row(row)
        caption = _caption_of(row, name)
        if found.captions.setdefault(name, caption) != caption:
            raise _RowInvalid(f"names {name}, which an earlier row names with another caption")
    except _RowInvalid as error:
        found.refused |= {name} if name else set()
        found.faults.append(fault(table, "caption_row_invalid", where=row.where, why=str(error)))


def _caption_of(row: Row, name: str) -> str:
    """The caption in a row. Raises: _RowInvalid."""
    if row.surplus:
        raise _RowInvalid(
            f"has more values than the table has columns ({row.surplus}): quote a text with the separator"
        )
    caption = text_of(row.values, CAPTION_COLUMNS)
    try:
        return storable_text((caption or "").strip())
    except FileRejected as rejection:
        wrong = {"empty_caption": "has no text"}.get(rejection.type, str(rejection.facts.get("what") or "is no text"))
        raise _RowInvalid(f"is about {name}, whose caption {wrong}") from None


class _AudioNames:
    """The audio files of a dataset, found by what a table calls them."""

    def __init__(self, source: Source, folder: str, audio: Iterable[str]) -> None:
        """Take the names.

        Args:
            folder: that of the table, which its names are relative to.
        """
        self._folder = folder
        self._root = source.path.absolute() if source.kind == "folder" else None
        self._by_name: dict[str, str] = {}
        self._by_last_part: dict[str, str] = {}
        for name in audio:
            self._by_name |= {pairing_key(name): name, _plain(name): name}
            self._by_last_part.setdefault(basename(pairing_key(name)).casefold(), name)

    def of_row(self, row: Row) -> str:
        """The audio file that a row names. Raises: _RowInvalid."""
        given = (text_of(row.values, FILE_COLUMNS) or "").strip()
        path = given.replace("\\", "/")
        if normpath(path or ".") == ".":
            raise _RowInvalid("names no file")
        for candidate in (self._below_root(path), join(self._folder, path), path):
            key = normpath(candidate or ".")
            if key != "." and (name := self._by_name.get(_plain(key))) is not None:
                return name
        near = self._by_last_part.get(basename(pairing_key(normpath(path))).casefold())
        hint = f" ({near} has its name)" if near else ""
        raise _RowInvalid(f"names {given}, which is no audio file of the dataset{hint}")

    def _below_root(self, path: str) -> str | None:
        """An absolute path inside the dataset's folder, relative to it."""
        if self._root is None or not Path(path).is_absolute() or not Path(path).is_relative_to(self._root):
            return None
        return PurePosixPath(Path(path).relative_to(self._root)).as_posix()


def _plain(name: str) -> str:
    """The name in one Unicode form, with its suffix."""
    return f"{pairing_key(name)}{suffix(name)}" if suffix(name) else pairing_key(name)
