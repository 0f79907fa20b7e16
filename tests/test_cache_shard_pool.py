"""A shard pool finds every item of its shards, whatever happens to the folder or the registry."""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import shard_format
from cache import shard_pool as pool_module
from cache.errors import ItemNotFound, ShardDamaged, ShardReplaced
from cache.shard_pool import ShardPool, shard_ranges
from cache.shards import formats

KEYS = [f"{n:064x}" for n in range(6)]


def values_of(key, seed=0):
    return np.random.default_rng([int(key, 16), seed]).standard_normal((5 + int(key, 16), 4)).astype("float16")


def items_of(*keys, seed=0):
    return [(key, values_of(key, seed)) for key in keys]


@pytest.fixture(params=formats())
def pool(request, tmp_path):
    return ShardPool(tmp_path / "latents", request.param, say=pytest.fail)


def reopened(pool):
    """The same folder, as another process sees it."""
    return ShardPool(pool.folder, pool.format, say=pytest.fail)


def flip_a_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


sizes_and_limits = st.tuples(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 6), st.integers(1, 60))


@settings(deadline=None, max_examples=200)
@given(sizes_and_limits)
def test_groups_are_consecutive_and_within_their_limits_and_no_smaller_than_need_be(drawn):
    sizes, max_items, max_bytes = drawn
    groups = shard_ranges(sizes, max_items, max_bytes)
    assert [number for group in groups for number in group] == list(range(len(sizes)))
    for group in groups:
        held = sum(sizes[number] for number in group)
        assert 1 <= len(group) <= max_items and (held <= max_bytes or len(group) == 1)
        if group.stop < len(sizes):
            assert len(group) == max_items or held + sizes[group.stop] > max_bytes


@settings(deadline=None, max_examples=200)
@given(sizes_and_limits, st.data())
def test_a_run_stopped_after_some_whole_shards_groups_the_rest_as_before(drawn, data):
    sizes, max_items, max_bytes = drawn
    groups = shard_ranges(sizes, max_items, max_bytes)
    done = data.draw(st.integers(0, len(groups)))
    start = groups[done].start if done < len(groups) else len(sizes)
    rest = shard_ranges(sizes[start:], max_items, max_bytes)
    assert [range(group.start + start, group.stop + start) for group in rest] == groups[done:]


def test_what_is_written_is_located_and_read(pool):
    locations = pool.write(items_of(*KEYS[:3]), {"made": "here"})
    assert [location.item_key for location in locations] == KEYS[:3]
    assert [location.row for location in locations] == [0, 1, 2]
    assert reopened(pool).locate([*KEYS]) == dict(zip(KEYS, locations, strict=False))
    for location in locations:
        assert np.array_equal(pool.read(location), values_of(location.item_key))
        assert np.array_equal(pool.read(location, 2, 4), values_of(location.item_key)[2:4])


def test_an_empty_pool_locates_nothing_and_creates_nothing(pool):
    assert pool.locate(KEYS) == {}
    assert pool.shards() == {}
    assert not pool.folder.exists()


def test_the_same_items_give_the_same_shard_on_another_pool(pool, tmp_path):
    other = ShardPool(tmp_path / "elsewhere", pool.format)
    assert pool.write(items_of(*KEYS), {"a": "b"}) == other.write(items_of(*KEYS), {"a": "b"})
    (name,) = pool.shards()
    assert (pool.folder / name).read_bytes() == (other.folder / name).read_bytes()


def test_the_shards_name_depends_on_keys_and_their_order_only(pool):
    names = {pool.write(items_of(*keys), {})[0].shard for keys in (KEYS[:2], KEYS[1::-1], KEYS[:1])}
    assert len(names) == 3
    assert pool.write(items_of(*KEYS[:2], seed=1), {"more": "metadata"})[0].shard in names


def test_an_intact_shard_stays_and_its_own_items_are_returned(pool):
    first = pool.write(items_of(*KEYS[:2]), {})
    before = (pool.folder / first[0].shard).stat()
    again = reopened(pool).write(items_of(*KEYS[:2], seed=1), {})
    assert again == first
    assert (pool.folder / first[0].shard).stat() == before
    assert np.array_equal(pool.read(again[0]), values_of(KEYS[0]))


def test_a_shard_that_another_writer_finishes_first_is_the_one_that_counts(pool, monkeypatch):
    rival, write = reopened(pool), pool._format.write

    def beaten(path, items, metadata):
        monkeypatch.setattr(pool._format, "write", write)
        rival.write(items_of(*KEYS[:2], seed=1), {})
        write(path, items, metadata)

    monkeypatch.setattr(pool._format, "write", beaten)
    locations = pool.write(items_of(*KEYS[:2]), {})
    assert np.array_equal(pool.read(locations[1]), values_of(KEYS[1], seed=1))


def test_a_damaged_shard_is_reported_and_replaced_when_its_items_are_written_again(pool):
    locations = pool.write(items_of(*KEYS), {})
    path, messages = pool.folder / locations[0].shard, []
    flip_a_bit(path, path.read_bytes().index(values_of(KEYS[4]).tobytes()))
    again = ShardPool(pool.folder, pool.format, say=messages.append).write(items_of(*KEYS), {})
    assert len(messages) == 1 and "is damaged" in messages[0] and "replaced now" in messages[0]
    assert again == locations
    assert reopened(pool).verify_shard(locations[0].shard) == 6


def test_shards_that_come_and_go_are_noticed(pool, tmp_path):
    other = ShardPool(tmp_path / "elsewhere", pool.format)
    (brought,) = other.write(items_of(KEYS[5]), {})
    locations = pool.write(items_of(*KEYS[:2]), {})
    assert set(pool.locate(KEYS)) == set(KEYS[:2])

    shutil.copy(other.folder / brought.shard, pool.folder)
    (pool.folder / locations[0].shard).unlink()
    assert pool.locate(KEYS) == {KEYS[5]: brought}


@pytest.mark.parametrize("harm", ["delete", "cut", "noise", "flip"])
def test_a_harmed_registry_is_filled_again_from_the_shards(pool, harm):
    locations = pool.write(items_of(*KEYS), {})
    registry, messages = pool.folder / f"registry-{pool.format}.sqlite", []
    content = registry.read_bytes()
    checksum = locations[0].checksum.encode()
    changed = {"cut": content[:5000], "noise": b"noise" * 3000, "flip": content.replace(checksum, checksum[:-1] + b"x")}
    registry.unlink() if harm == "delete" else registry.write_bytes(changed[harm])
    assert ShardPool(pool.folder, pool.format, say=messages.append).locate(KEYS) == dict(
        zip(KEYS, locations, strict=True)
    )
    assert len(messages) == (0 if harm == "delete" else 1)


def test_an_item_in_two_shards_is_found_wherever_it_is_left(pool):
    one, two = pool.write(items_of(*KEYS[:2]), {}), pool.write(items_of(*KEYS[1:3]), {})
    kept = min(one[1], two[0], key=lambda location: location.shard)
    assert pool.locate([KEYS[1]]) == {KEYS[1]: kept}
    (pool.folder / kept.shard).unlink()
    assert pool.locate([KEYS[1]]) == {KEYS[1]: two[0] if kept == one[1] else one[1]}


def test_formats_share_a_folder_without_seeing_each_other(tmp_path):
    pools = [ShardPool(tmp_path, name) for name in formats()]
    pools[0].write(items_of(KEYS[0]), {})
    pools[1].write(items_of(KEYS[1]), {})
    assert [list(pool.locate(KEYS)) for pool in pools] == [[KEYS[0]], [KEYS[1]]]


def test_a_new_shard_that_is_damaged_is_an_error_naming_it(pool):
    (location,) = pool.write(items_of(KEYS[0]), {})
    path = pool.folder / location.shard
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ShardDamaged, match=location.shard):
        reopened(pool).locate(KEYS)


def test_swapped_shards_are_noticed_by_name_and_by_item(pool):
    (one,), (two,) = pool.write(items_of(KEYS[0]), {}), pool.write(items_of(KEYS[1]), {})
    paths = [pool.folder / each.shard for each in (one, two)]
    paths[0].rename(pool.folder / "aside")
    paths[1].rename(paths[0])
    (pool.folder / "aside").rename(paths[1])
    with pytest.raises(ShardDamaged, match="its name does not match the keys"):
        reopened(pool).verify_shard(one.shard)
    with pytest.raises(ShardDamaged, match="its name does not match the keys"):
        reopened(pool).locate(KEYS)
    with pytest.raises(ShardReplaced, match="row 0 is not item"):
        reopened(pool).read(one)


@pytest.mark.parametrize(
    "change", [{"item_key": KEYS[3]}, {"row": 1}, {"row": 9}, {"num_frames": 4}, {"checksum": "00000000"}], ids=str
)
def test_a_location_that_the_shard_does_not_confirm_is_refused(pool, change):
    (location, _) = pool.write(items_of(*KEYS[:2]), {})
    with pytest.raises(ShardReplaced, match="verify --repair"):
        pool.read(replace(location, **change))


def test_a_shard_that_is_gone_says_what_to_type(pool):
    (location,) = pool.write(items_of(KEYS[0]), {})
    (pool.folder / location.shard).unlink()
    with pytest.raises(ItemNotFound, match="Run `sa3-trainer encode`"):
        reopened(pool).read(location)


def test_a_flipped_bit_is_noticed_by_the_first_whole_read_and_by_verify_shard(pool):
    locations = pool.write(items_of(*KEYS), {})
    path = pool.folder / locations[0].shard
    flip_a_bit(path, path.read_bytes().index(values_of(KEYS[4]).tobytes()))
    with pytest.raises(ShardDamaged, match=str(path)):
        pool.read(locations[4])
    pool.read(locations[3])
    with pytest.raises(ShardDamaged, match=str(path)):
        reopened(pool).verify_shard(path.name)


def test_a_pool_is_sent_to_another_process_by_its_folder(pool):
    (location,) = pool.write(items_of(KEYS[2]), {})
    assert np.array_equal(pickle.loads(pickle.dumps(pool)).read(location), values_of(KEYS[2]))


def test_only_so_many_shards_are_kept_open(pool, monkeypatch):
    monkeypatch.setattr(pool_module, "MAX_OPEN_SHARDS", 2)
    locations = [pool.write(items_of(key), {})[0] for key in KEYS]
    for location in locations * 2:
        assert np.array_equal(pool.read(location), values_of(location.item_key))
        assert len(pool._readers) <= 2


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_process_that_has_run_out_of_files_or_memory_takes_no_shard_for_damaged(pool, monkeypatch, number):
    pool.write(items_of("a"), {})
    (name,) = pool.shards()

    def exhausted(path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shard_format, "RandomAccessFile", exhausted)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        reopened(pool).write(items_of("a"), {})
    assert name in pool.shards()


@pytest.mark.parametrize("put", [lambda file: file.symlink_to(file.name), os.mkfifo], ids=["link to itself", "pipe"])
def test_what_lies_in_place_of_a_shard_is_replaced_when_its_items_are_written_again(pool, put):
    located = pool.write(items_of("a"), {})
    file = pool.folder / located[0].shard
    file.unlink()
    put(file)
    said = []
    again = ShardPool(pool.folder, pool.format, say=said.append)
    assert again.write(items_of("a"), {}) == located
    assert "is damaged" in said[0]
    np.testing.assert_array_equal(again.read(located[0]), items_of("a")[0][1])
