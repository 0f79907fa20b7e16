"""Rows read back as written, and the same rows give the same bytes; anything else is an error that names it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache import manifest
from cache.errors import ManifestDamaged, ManifestMismatch
from cache.manifest import iter_rows, read_columns, read_rows, write_rows


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    count: int
    loss: float | None
    kept: bool
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Other:
    name: str
    count: float
    extra: int


ROWS = [Row(name=f"clip {n}", count=n, loss=n / 3, kept=n % 2 == 0, note=None if n % 3 else "é") for n in range(20)]
any_row = st.builds(
    Row,
    name=st.text("aé水\0\n"),
    count=st.integers(-(2**63), 2**63 - 1),
    loss=st.none() | st.floats(allow_nan=False),
    kept=st.booleans(),
    note=st.none() | st.text("xyz"),
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "manifest.parquet"


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_row, max_size=5))
def test_rows_read_back_as_they_were_written(file, rows):
    assert write_rows(file, rows, Row) == len(rows)
    assert read_rows(file, Row) == rows


def test_the_same_rows_give_the_same_bytes_whatever_they_come_from(file, tmp_path):
    write_rows(file, ROWS, Row)
    write_rows(tmp_path / "again.parquet", (replace(row) for row in ROWS), Row)
    assert file.read_bytes() == (tmp_path / "again.parquet").read_bytes()


def test_many_rows_are_written_and_read_in_groups(file, monkeypatch):
    monkeypatch.setattr(manifest, "ROW_GROUP_ROWS", 3)
    write_rows(file, iter(ROWS), Row)
    assert pq.ParquetFile(file).num_row_groups == 7
    assert list(iter_rows(file, Row, batch=4)) == ROWS


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_row, max_size=9))
def test_rows_held_by_column_are_the_rows(file, rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "ROW_GROUP_ROWS", 2)
        write_rows(file, rows, Row)
        columns = read_columns(file, Row)
    assert len(columns) == len(rows)
    assert [columns[index] for index in range(len(rows))] == rows
    assert columns.numbers("count").tolist() == [row.count for row in rows]


def test_a_text_that_comes_again_is_held_once(file, monkeypatch):
    monkeypatch.setattr(manifest, "ROW_GROUP_ROWS", 7)
    rows = [replace(ROWS[0], name=f"kind {number // 6}") for number in range(20)]
    write_rows(file, rows, Row)
    columns = read_columns(file, Row)
    assert columns._columns["name"].texts == [f"kind {number}" for number in range(4)]
    assert [columns.value("name", index) for index in range(20)] == [row.name for row in rows]


def test_a_flipped_byte_is_noticed_when_columns_are_read(file):
    write_rows(file, ROWS, Row)
    content = bytearray(file.read_bytes())
    content[content.index(b"clip 7")] ^= 1
    file.write_bytes(content)
    with pytest.raises(ManifestDamaged):
        read_columns(file, Row)


def test_other_parquet_programs_read_it(file):
    write_rows(file, ROWS, Row)
    assert pq.read_table(file).column("count").to_pylist() == list(range(20))


def test_every_column_that_does_not_match_is_listed(file):
    write_rows(file, ROWS, Row)
    with pytest.raises(ManifestMismatch) as caught:
        read_rows(file, Other)
    assert caught.value.differences == (
        "column extra (int64) is missing",
        "column loss is unknown",
        "column kept is unknown",
        "column note is unknown",
        "column count is int64, not double",
    )


def test_a_nullable_column_does_not_match_one_that_is_not(file):
    pq.write_table(pa.table({"name": ["a"]}), file)  # nullable, as most programs write

    @dataclass
    class Named:
        name: str

    with pytest.raises(ManifestMismatch, match="column name is string or None, not string"):
        read_rows(file, Named)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": True}, "row 1: count is True, not int64"),
        ({"count": 1.0}, r"row 1: count is 1\.0, not int64"),
        ({"name": None}, "row 1: name is None, not string"),
        ({"loss": 1}, "row 1: loss is 1, not double or None"),
        ({"count": 2**63}, "count: .*too big|count: .*int"),
        ({"name": "\ud800"}, "name: .*surrogates"),
    ],
)
def test_a_row_with_values_of_another_type_is_named_and_nothing_is_written(file, change, words):
    with pytest.raises(ManifestMismatch, match=words):
        write_rows(file, [ROWS[0], replace(ROWS[1], **change)], Row)
    assert list(file.parent.iterdir()) == []


def test_a_row_of_another_type_is_refused(file):
    with pytest.raises(ManifestMismatch, match="a row has the type Other"):
        write_rows(file, [ROWS[0], Other(name="a", count=1.0, extra=1)], Row)


def test_a_row_type_with_a_column_no_manifest_can_hold_is_refused(file):
    @dataclass
    class Listed:
        names: list[str]

    with pytest.raises(TypeError, match=r"Listed\.names must be str, int, float or bool"):
        write_rows(file, [], Listed)


def test_a_changed_byte_is_noticed_before_the_library_sees_it(file, monkeypatch):
    write_rows(file, ROWS, Row)
    content = bytearray(file.read_bytes())
    content[5] ^= 1  # in the first page's header, which Parquet does not protect
    file.write_bytes(content)
    monkeypatch.setattr(pq, "ParquetFile", lambda *given, **options: pytest.fail("the library was asked"))
    with pytest.raises(ManifestDamaged, match="its content does not match its checksum"):
        read_rows(file, Row)


def test_a_missing_manifest_is_not_damage(file):
    with pytest.raises(FileNotFoundError):
        read_rows(file, Row)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_flipped_bit_or_a_truncation_is_noticed_or_harmless(file, data):
    write_rows(file, ROWS, Row)
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[position:]
    file.write_bytes(content)
    try:
        assert read_rows(file, Row) == ROWS
    except (ManifestDamaged, ManifestMismatch) as error:
        assert str(file) in str(error)
