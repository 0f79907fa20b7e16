"""Captions from one table of the dataset: metadata.csv or metadata.jsonl, with a file and a caption column.

Light: standard library only.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from posixpath import dirname, join, normpath

from stages.contract import Member, Source
from stages.errors import Fault
from stages.ingest.captions.pairing import storable_text
from stages.ingest.faults import FileRejected, fault
from stages.ingest.file_types import pairing_key, suffix
from stages.ingest.source.archive import read_member
from stages.text import NotText, decoded

FILE_COLUMNS = (
    "file_name",
    "file",
    "filename",
    "path",
    "audio",
    "file_path",
    "audio_path",
    "audio_file",
    "audio_filepath",
)
CAPTION_COLUMNS = ("caption", "text", "prompt", "description", "transcription")
"""Names of the columns; the first that is there is used. Source: Hugging Face's audiofolder, NeMo manifests."""


@dataclass(kw_only=True)
class CaptionTable:
    """The captions by the name of the audio file, and what is wrong with rows of the table."""

    captions: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def read_caption_table(source: Source, name: str, audio: Sequence[Member]) -> CaptionTable:
    """Read the table of that name; every row that names no audio file, or one twice, is a fault."""
    found = CaptionTable()
    member = next((one for one in source.members if one.name == name), None)
    if member is None:
        found.faults.append(fault("", "caption_table_missing", name=name))
        return found
    by_name = {key: one.name for one in audio for key in (pairing_key(one.name), _plain(one.name))}
    try:
        for number, row in enumerate(_rows(name, decoded(read_member(source.path, source.kind, member))), 1):
            _add(found, row, number, member.name, by_name)
    except NotText as error:
        found.faults.append(fault(name, "caption_table_invalid", why=f"it is {error}"))
    except (ValueError, csv.Error, RecursionError) as error:
        found.faults.append(fault(name, "caption_table_invalid", why=str(error).partition("\n")[0]))
    except FileRejected as rejection:
        found.faults.append(rejection.fault(name))
    return found


def _rows(name: str, text: str) -> Iterator[Mapping[str, object]]:
    """The rows of a table by column. Raises: ValueError, csv.Error."""
    if suffix(name) == ".jsonl":
        for line in text.splitlines():
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("a line is not a JSON object")
                yield row
        return
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    yield from csv.DictReader(text.splitlines(keepends=True), delimiter=separator, strict=True)


def _add(found: CaptionTable, row: Mapping[str, object], number: int, table: str, by_name: Mapping[str, str]) -> None:
    """Take one row into the table. Raises ValueError where a column is missing."""
    file, caption = _value(row, FILE_COLUMNS, number), _value(row, CAPTION_COLUMNS, number)
    path = _plain(normpath(join(dirname(table), file.replace("\\", "/"))))
    name = by_name.get(path)
    if name is None or name in found.captions:
        said = "an earlier row names too" if name else "is no audio file of the dataset"
        why = f"row {number} names {file}, which {said}"
        found.faults.append(fault(table, "caption_table_invalid", why=why))
        return
    try:
        found.captions[name] = storable_text(caption.strip())
    except FileRejected as rejection:
        found.faults.append(rejection.fault(name))
        found.captions[name] = ""


def _value(row: Mapping[str, object], columns: Sequence[str], number: int) -> str:
    known = {str(key).strip().casefold(): value for key, value in row.items() if key is not None}
    for column in columns:
        if isinstance(value := known.get(column), str):
            return value
    raise ValueError(f"row {number} has no column {' or '.join(columns[:3])} with a text")


def _plain(name: str) -> str:
    """The name in one Unicode form, with its suffix."""
    return f"{pairing_key(name)}{suffix(name)}" if suffix(name) else pairing_key(name)
