"""Rows of a table of captions: CSV, TSV, JSON Lines, or a JSON array. Light: standard library only."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.ingest.file_types import suffix
from stages.text import parsed_json

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
_SEPARATORS = ",;\t|"
_LINE_END = re.compile(r"\r\n|\r|\n")
"""Not str.splitlines, which also splits at U+2028 and form feeds inside a text."""
_EXCEL_SEPARATOR = re.compile(r"\s*sep=(.)(\r\n|\r|\n)", re.IGNORECASE)
"""A first line by which Excel says what separates the columns."""


class TableInvalid(ValueError):
    """The file is no table of files and captions; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table."""

    where: str
    """As in "line 3"."""
    values: Mapping[str, object]
    surplus: str = ""
    """The values beyond the last column, joined."""


def table_rows(name: str, text: str) -> Iterator[Row]:
    """The rows of a table that are not blank. Raises: TableInvalid, where it cannot be read on."""
    if suffix(name) in (".json", ".jsonl"):
        return _json_rows(text)
    return _csv_rows(text)


def text_of(row: Mapping[str, object], columns: Sequence[str]) -> str | None:
    """The text in the first of these columns that a row has; upper and lower case make no difference."""
    known = {str(key).strip().casefold(): value for key, value in row.items()}
    return next((value for column in columns if isinstance(value := known.get(column), str)), None)


def _csv_rows(text: str) -> Iterator[Row]:
    if stated := _EXCEL_SEPARATOR.match(text):
        text = text[stated.end() :]
    first = _LINE_END.split(text, maxsplit=1)[0]
    separator = stated[1] if stated else max(_SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
        _check_columns(columns)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                surplus = separator.join(cells[len(columns) :]).strip(f"{separator} ")
                values = dict(zip(columns, cells, strict=False))
                yield Row(where=f"line {reader.line_num + bool(stated)}", values=values, surplus=surplus)
    except csv.Error as error:
        raise TableInvalid(f"line {reader.line_num + bool(stated)}: {error}") from error


def _check_columns(columns: Sequence[str]) -> None:
    """Raise TableInvalid where the first line does not name the columns."""
    named = {name.casefold() for name in columns}
    for kind, known in (("the files", FILE_COLUMNS), ("the captions", CAPTION_COLUMNS)):
        if named.isdisjoint(known):
            found, some = ", ".join(columns)[:60] or "nothing", ", ".join(known[:3])
            raise TableInvalid(
                f"its first line must name the columns, one of {kind} ({some} or the like); it names {found}"
            )


def _json_rows(text: str) -> Iterator[Row]:
    for where, entry in _entries(text) if text.lstrip().startswith("[") else _lines(text):
        if not isinstance(entry, Mapping):
            raise TableInvalid(f"{where} is not a JSON object")
        yield Row(where=where, values=entry)


def _entries(text: str) -> Iterator[tuple[str, object]]:
    """The entries of one JSON array."""
    for number, entry in enumerate(_parsed(text, "it"), 1):
        yield f"entry {number}", entry


def _lines(text: str) -> Iterator[tuple[str, object]]:
    """The JSON value on each line."""
    for number, line in enumerate(_LINE_END.split(text), 1):
        if line.strip():
            yield f"line {number}", _parsed(line, f"line {number}")


def _parsed(text: str, what: str) -> Any:
    try:
        return parsed_json(text)
    except ValueError as error:
        raise TableInvalid(f"{what} is not JSON: {error}") from error
