"""What is specific to one latent format: other programs can read its files, and it reads theirs."""

from __future__ import annotations

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache.errors import ShardDamaged
from cache.files.parquet_checksum import FOOTER_ONLY
from cache.shards import hdf5, parquet

ITEMS = [(f"{n:032x}", np.random.default_rng(n).standard_normal((n * 30, 8)).astype("float16")) for n in range(4)]


@pytest.fixture
def ours(tmp_path):
    path = tmp_path / "ours.parquet"
    parquet.write(path, ITEMS, {"made": "here"})
    return path


@pytest.fixture
def flat(tmp_path):
    path = tmp_path / "flat.h5"
    hdf5.write(path, ITEMS, {"made": "here"})
    return path


def rewritten(path, **options):
    other = path.with_name("other.parquet")
    pq.write_table(pq.read_table(path), other, **options)
    return other


def test_other_parquet_programs_read_our_shards(ours):
    table = pq.read_table(ours)
    assert table.column("num_frames").to_pylist() == [0, 30, 60, 90]
    assert [np.frombuffer(value.as_py(), "float16").reshape(-1, 8).shape for value in table.column("values")][3] == (
        90,
        8,
    )
    assert table.column("values")[2].as_py() == ITEMS[2][1].tobytes()


def test_other_hdf5_programs_read_our_shards(flat):
    with h5py.File(flat) as file:
        start, stop = file["offsets"][2:4]
        assert np.array_equal(file["values"][start:stop], ITEMS[2][1])
        assert file["keys"].asstr()[2] == ITEMS[2][0]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"compression": "zstd", "row_group_size": 1, "use_dictionary": False}, r"compressed \(ZSTD\)"),
        ({"compression": "none", "row_group_size": 1}, "encoded"),
        ({"compression": "none", "use_dictionary": False}, "several items"),
        ({"compression": "none", "use_dictionary": False, "row_group_size": 3}, "several items"),
        ({"compression": "snappy", "data_page_version": "2.0"}, "several items"),
    ],
)
def test_a_parquet_shard_written_differently_is_read_with_a_warning(ours, options, why):
    reader = parquet.Reader(rewritten(ours, **options))
    with pytest.warns(UserWarning, match=f"{why}.*crops read whole items"):
        assert reader.keys == tuple(key for key, _ in ITEMS)
    for row, (_, values) in enumerate(ITEMS):
        assert np.array_equal(reader.read(row), values)
        assert np.array_equal(reader.read(row, row, row * 20), values[row : row * 20])
        reader.verify(row)


def test_a_parquet_shard_with_columns_that_may_hold_nulls_is_read_through_the_library(ours):
    table = pq.read_table(ours)
    nullable = pa.schema([field.with_nullable(True) for field in table.schema], metadata=table.schema.metadata)
    other = ours.with_name("nullable.parquet")
    options = {"compression": "none", "row_group_size": 1, "use_dictionary": False}
    pq.write_table(table.cast(nullable), other, **options)
    with pytest.warns(UserWarning, match="may hold nulls"):
        assert np.array_equal(parquet.Reader(other).read(2, 5, 9), ITEMS[2][1][5:9])


def test_a_parquet_shard_of_the_same_shape_by_another_writer_is_read_in_place(ours, recwarn):
    options = {"compression": "none", "row_group_size": 1, "use_dictionary": False, "data_page_version": "2.0"}
    assert np.array_equal(parquet.Reader(rewritten(ours, **options)).read(3, 10, 20), ITEMS[3][1][10:20])
    assert not recwarn.list


def test_a_length_that_is_not_before_its_item_is_damage(ours):
    content = ours.read_bytes()
    at = content.index(ITEMS[2][1].tobytes()) - 4
    assert int.from_bytes(content[at : at + 4], "little") == ITEMS[2][1].nbytes
    ours.write_bytes(content[:at] + b"\x01\0\0\0" + content[at + 4 :])
    with pytest.raises(ShardDamaged, match="row 2 is not where the footer says"):
        parquet.Reader(ours).read(3)


def test_a_wrong_footer_is_noticed_before_the_library_sees_it(ours, monkeypatch):
    content = bytearray(ours.read_bytes())
    content[content.index(FOOTER_ONLY) + 60] ^= 1
    ours.write_bytes(content)
    monkeypatch.setattr(pq, "ParquetFile", lambda *given, **options: pytest.fail("the library was asked"))
    with pytest.raises(ShardDamaged, match="its content does not match its checksum"):
        parquet.Reader(ours).read(0)


def test_an_item_changed_together_with_its_checksum_breaks_the_digest(ours):
    table = pq.read_table(ours)
    changed = table.set_column(2, table.schema.field("checksum"), [["00000000"] * 4])
    other = ours.with_name("forged.parquet")
    pq.write_table(changed, other)
    with pytest.raises(ShardDamaged, match="does not match its digest"):
        parquet.Reader(other).read(0)


def test_a_parquet_file_that_is_no_shard_says_what_it_holds(tmp_path):
    pq.write_table(pa.table({"clip": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(ShardDamaged, match="its columns are clip string"):
        parquet.Reader(tmp_path / "x.parquet").read(0)


def test_a_chunked_hdf5_shard_is_read_through_the_library_with_a_warning(flat):
    other = flat.with_name("chunked.h5")
    with h5py.File(flat) as source, h5py.File(other, "w") as target:
        for name in ("offsets", "keys", "checksums"):
            source.copy(name, target)
        target.create_dataset("values", data=source["values"][:], chunks=(16, 8), compression="gzip", fletcher32=True)
        target.attrs["shard"] = source.attrs["shard"]
    reader = hdf5.Reader(other)
    with pytest.warns(UserWarning, match="chunked; crops read whole items"):
        assert np.array_equal(reader.read(3, 10, 20), ITEMS[3][1][10:20])
    for row in range(4):
        reader.verify(row)


def test_an_hdf5_shard_is_of_the_format_whose_headers_have_checksums(flat):
    assert flat.read_bytes()[:9] == b"\x89HDF\r\n\x1a\n\x02"  # superblock version 2
    with h5py.File(flat) as file:
        assert file["values"].chunks is None and file["values"].id.get_offset() is not None


def test_hdf5_values_that_do_not_fit_their_header_are_damage(flat):
    with h5py.File(flat, "r+") as file:
        values = file["values"][:-1]
        del file["values"]
        file["values"] = values
    with pytest.raises(ShardDamaged, match=r"its values are \(179, 8\)"):
        hdf5.Reader(flat).read(0)
