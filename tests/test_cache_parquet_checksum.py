"""A checksum between the last page and the footer covers what Parquet leaves unprotected, and disturbs no reader."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache.files.parquet_checksum import FOOTER_ONLY, WHOLE_FILE, insert_checksum, verify_checksum

TABLE = pa.table({"name": [f"clip {n}" for n in range(50)]})


@pytest.fixture
def plain():
    file = io.BytesIO()
    pq.write_table(TABLE, file)
    return file


def test_a_file_of_another_program_has_no_checksum_and_passes(plain):
    verify_checksum(plain)


@pytest.mark.parametrize("scope", [FOOTER_ONLY, WHOLE_FILE])
def test_a_file_with_a_checksum_passes_and_reads_as_before(plain, scope):
    insert_checksum(plain, scope)
    verify_checksum(plain)
    assert pq.read_table(plain).equals(TABLE)


@pytest.mark.parametrize("scope", [FOOTER_ONLY, WHOLE_FILE])
def test_every_flipped_byte_covered_is_noticed(plain, scope):
    insert_checksum(plain, scope)
    whole = plain.getvalue()
    footer_start = whole.index(scope) + len(scope)
    missed = []
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1
        try:
            verify_checksum(io.BytesIO(changed))
            missed.append(position)
        except ValueError:
            pass
    mark = range(footer_start - len(scope), footer_start)  # without its mark it is a file of another program
    length = range(len(whole) - 8, len(whole) - 4)  # a wrong one leads past the mark; then it is no Parquet file at all
    first = 0 if scope == WHOLE_FILE else footer_start
    assert [position for position in missed if position >= first and position not in {*mark, *length}] == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\xff\xff\xff\x7fPAR1", b"no Parquet file at all"])
def test_a_file_with_an_incomplete_footer_is_refused(content):
    with pytest.raises(ValueError, match="it is truncated, or no Parquet file"):
        verify_checksum(io.BytesIO(content))
