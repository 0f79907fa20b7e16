"""The contract of every latent format; a new file in cache/shards is held to all of it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.errors import ShardDamaged, UnknownFormat
from cache.shards import formats, load

ROOT = Path(__file__).parents[2]
METADATA = {"made": "here", "note": "é"}
WITH_FILES = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=formats())
def format(request):
    return load(request.param)


@pytest.fixture
def path(tmp_path, format):
    return tmp_path / f"shard{format.SUFFIX}"


def items_of(lengths=(40, 0, 7, 300), channels=16, dtype="float16", seed=0):
    random = np.random.default_rng(seed)
    return [(f"key {n} é", random.standard_normal((t, channels)).astype(dtype)) for n, t in enumerate(lengths)]


def payload_offset(path, values):
    """File offset of an item's bytes, found by searching for them."""
    offset = path.read_bytes().find(values.tobytes())
    assert offset >= 0
    return offset


def overwrite(path, offset, content):
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(content)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_items_read_back_bit_for_bit_in_their_order(format, path, dtype):
    items = items_of(dtype=dtype)
    format.write(path, items, METADATA)
    reader = format.Reader(path)
    assert reader.keys == tuple(key for key, _ in items)
    assert reader.num_frames == (40, 0, 7, 300)
    assert dict(reader.metadata) == METADATA
    for row, (_, values) in enumerate(items):
        read = reader.read(row)
        assert read.dtype == values.dtype and read.tobytes() == values.tobytes() and read.shape == values.shape
        reader.verify(row)


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@WITH_FILES
@given(data=st.data())
def test_any_crop_is_the_slice_of_the_item(format, path, data):
    lengths = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=5))
    items = items_of(lengths, data.draw(st.integers(1, 5)), data.draw(st.sampled_from(["float16", "float32"])))
    path.unlink(missing_ok=True)
    format.write(path, items, {})
    reader = format.Reader(path)
    row = data.draw(st.integers(0, len(items) - 1))
    start = data.draw(st.integers(0, lengths[row]))
    stop = data.draw(st.integers(start, lengths[row]))
    assert np.array_equal(reader.read(row, start, stop), items[row][1][start:stop])


def test_nan_payloads_are_kept(format, path):
    values = np.array([[0x7E01, 0xFE00, 0x8000, 0x7C00]], "uint16").view("float16")  # NaNs, -0, inf
    format.write(path, [("k", values)], {})
    assert format.Reader(path).read(0).tobytes() == values.tobytes()


def test_read_arrays_are_writable(format, path):
    format.write(path, items_of(), {})
    values = format.Reader(path).read(0)
    values[:] = 0
    assert values.flags.writeable and not np.array_equal(format.Reader(path).read(0), values)


def test_the_first_crop_reads_its_item_whole_and_further_ones_their_own_bytes_alone(format, path, monkeypatch):
    items = items_of((500, 400, 300))
    format.write(path, items, {})
    reader = format.Reader(path)
    assert len(reader.keys) == 3  # opened
    counted, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: counted.append(preadv(*arguments)) or counted[-1])
    frame_bytes = items[0][1].strides[0]
    reader.read(1, 100, 150)
    assert sum(counted) == 400 * frame_bytes
    assert np.array_equal(reader.read(1, 110, 130), items[1][1][110:130])
    assert sum(counted) == (400 + 20) * frame_bytes
    assert reader.read(2, 0, 0).shape[0] == 0 and sum(counted) == (400 + 20) * frame_bytes


def test_a_crop_of_a_damaged_item_is_refused_though_its_own_bytes_are_intact(format, path):
    items = items_of((50, 400, 30))
    format.write(path, items, {})
    noise = np.full_like(items[1][1], 7)
    noise[100:150] = items[1][1][100:150]
    overwrite(path, payload_offset(path, items[1][1]), noise.tobytes())
    reader = format.Reader(path)
    with pytest.raises(ShardDamaged):
        reader.read(1, 100, 150)
    assert np.array_equal(reader.read(0, 10, 20), items[0][1][10:20])


def test_a_platform_without_positioned_reads_reads_the_same(format, path, monkeypatch):
    items = items_of()
    format.write(path, items, {})
    monkeypatch.delattr(os, "preadv", raising=False)
    assert np.array_equal(format.Reader(path).read(3, 10, 200), items[3][1][10:200])


def test_the_same_items_give_the_same_bytes_in_any_process(format, path, tmp_path):
    items = [("a", np.arange(24, dtype="float16").reshape(6, 4)), ("b", np.ones((3, 4), "float16"))]
    format.write(path, items, METADATA)
    code = (
        "import sys; from pathlib import Path; import numpy as np; from cache.shards import load\n"
        "items = [('a', np.arange(24, dtype='float16').reshape(6, 4)), ('b', np.ones((3, 4), 'float16'))]\n"
        "load(sys.argv[1]).write(Path(sys.argv[2]), items, {'note': 'é', 'made': 'here'})\n"
    )
    other = tmp_path / "later"
    name = format.__name__.rsplit(".", 1)[1]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code, name, str(other)], cwd=ROOT, env=environment, check=True)
    assert other.read_bytes() == path.read_bytes()


def test_a_shard_never_changes(format, path):
    format.write(path, items_of(), {})
    before = path.read_bytes()
    format.write(path, items_of(seed=1), {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "at least one item"),
        ([("a", np.zeros((2, 3), "float16")), ("a", np.zeros((2, 3), "float16"))], "a key occurs twice"),
        ([("", np.zeros((2, 3), "float16"))], "a key must be a string"),
        ([("a\0", np.zeros((2, 3), "float16"))], "a key must be a string"),
        ([("a", np.zeros((2, 3), "float64"))], "must be of float16 or float32; got float64"),
        ([("a", np.zeros((2, 3), ">f4"))], "must be of float16 or float32; got >f4"),
        ([("a", np.zeros((3, 2), "float32").T)], "C-contiguous"),
        ([("a", np.zeros(3, "float32"))], "C-contiguous array"),
        ([("a", np.zeros((2, 0), "float32"))], "C-contiguous array"),
        ([("a", np.zeros((2, 3), "float32")), ("b", np.zeros((2, 3), "float16"))], "one dtype and width"),
        ([("a", np.zeros((2, 3), "float32")), ("b", np.zeros((2, 4), "float32"))], "one dtype and width"),
    ],
)
def test_items_that_do_not_form_a_shard_are_refused_and_nothing_is_written(format, path, items, words):
    with pytest.raises(ValueError, match=words):
        format.write(path, items, {})
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(("row", "start", "stop"), [(4, 0, 1), (-1, 0, 1), (0, -1, 3), (0, 5, 3), (0, 0, 41)])
def test_a_crop_outside_its_item_is_refused(format, path, row, start, stop):
    format.write(path, items_of(), {})
    with pytest.raises(ValueError, match=r"shard\.\w+ (has rows|row 0 has 40 frames)"):
        format.Reader(path).read(row, start, stop)


def test_a_reader_is_sent_to_another_process_by_its_path_and_opens_there(format, path):
    items = items_of()
    format.write(path, items, {})
    reader = format.Reader(path)
    reader.read(0)
    code = (
        "import pickle, sys; r = pickle.load(sys.stdin.buffer); print(r.checksums[3], r.read(3, 1, 2).tobytes().hex())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, input=pickle.dumps(reader), capture_output=True, check=True
    )
    assert run.stdout.decode().split() == [reader.checksums[3], items[3][1][1:2].tobytes().hex()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_reader_opened_before_a_fork_works_on_both_sides(format, path):
    items = items_of()
    format.write(path, items, {})
    reader = format.Reader(path)
    reader.read(0)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if np.array_equal(reader.read(3), items[3][1]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert np.array_equal(reader.read(2), items[2][1])


@pytest.mark.parametrize("positioned", [True, False])
def test_threads_share_a_reader(format, path, monkeypatch, positioned):
    items = items_of((200,) * 8)
    format.write(path, items, {})
    if not positioned:
        monkeypatch.delattr(os, "preadv", raising=False)
    reader, wrong = format.Reader(path), []

    def read_all(first):
        for number in range(160):
            row = (first + number) % 8
            if not np.array_equal(reader.read(row, 10, 190), items[row][1][10:190]):
                wrong.append(row)

    threads = [threading.Thread(target=read_all, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_whole_item_is_checked_when_first_read_and_verify_checks_again(format, path):
    items = items_of()
    format.write(path, items, {})
    reader = format.Reader(path)
    reader.read(3)
    overwrite(path, payload_offset(path, items[3][1]), b"\xff\xff")
    reader.read(3)  # checked before, in this process
    with pytest.raises(ShardDamaged, match=r"item key 3 é has checksum [0-9a-f]{8} instead of [0-9a-f]{8}"):
        reader.verify(3)
    with pytest.raises(ShardDamaged, match="sa3-trainer verify --repair"):
        format.Reader(path).read(3)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_noticed_or_harmless(format, path, data):
    items = items_of((3, 0, 2), channels=4)
    path.unlink(missing_ok=True)
    format.write(path, items, METADATA)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    reader = format.Reader(path)
    try:
        for row in range(len(reader.keys)):
            reader.verify(row)
    except ShardDamaged as error:
        assert str(path) in str(error)
    else:
        assert reader.keys == tuple(key for key, _ in items) and dict(reader.metadata) == METADATA
        assert all(np.array_equal(reader.read(row), values) for row, (_, values) in enumerate(items))


@WITH_FILES
@given(data=st.data())
def test_a_truncated_shard_is_damaged(format, path, data):
    path.unlink(missing_ok=True)
    format.write(path, items_of((3, 2), channels=4), {})
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ShardDamaged, match=str(path)):
        format.Reader(path).read(0)


def test_a_shard_truncated_after_it_was_opened_is_damaged(format, path):
    format.write(path, items_of(), {})
    reader = format.Reader(path)
    reader.read(0)
    os.truncate(path, 100)
    with pytest.raises(ShardDamaged, match="it ends inside row 3"):
        reader.read(3, 290, 300)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\x89HDF\r\n\x1a\n", b"x" * 5000])
def test_a_file_that_is_no_shard_is_damaged(format, path, content):
    path.write_bytes(content)
    with pytest.raises(ShardDamaged):
        format.Reader(path).read(0)


def test_a_shard_that_is_not_there_is_not_damaged(format, path):
    with pytest.raises(FileNotFoundError):
        format.Reader(path).read(0)


def test_a_garbage_collected_reader_closes_its_file(format, path):
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    format.write(path, items_of(), {})
    before = open_files()
    readers = [format.Reader(path) for _ in range(5)]
    assert all(len(reader.read(0)) == 40 for reader in readers)
    assert open_files() == before + 5
    del readers
    assert open_files() == before


def test_an_unknown_format_names_the_choices():
    with pytest.raises(UnknownFormat, match=r"'npy'. Choose one of: hdf5, parquet"):
        load("npy")
    with pytest.raises(UnknownFormat):
        load("_protocol")
