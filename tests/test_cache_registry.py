"""The registry repeats what shards hold, and can be rebuilt at any time."""

from __future__ import annotations

import pytest

from cache.location import Location
from cache.registry import Registry, unregister_shards


def location(key, shard="s1", row=0):
    return Location(item_key=key, shard=shard, row=row, num_frames=7, checksum="0badf00d")


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path, "parquet", say=pytest.fail)


def test_an_added_item_is_found(registry):
    registry.add("s1", (100, 5), [location("a"), location("b", row=1)])
    assert registry.find(["b", "nothing"]) == {"b": location("b", row=1)}
    assert registry.shards() == {"s1": (100, 5)}


def test_thousands_of_keys_are_found_at_once(registry):
    keys = [f"{number:064x}" for number in range(2500)]
    registry.add("s1", (100, 5), [location(key, row=row) for row, key in enumerate(keys)])
    assert registry.find(keys) == {key: location(key, row=row) for row, key in enumerate(keys)}


def test_adding_a_shard_again_replaces_its_items(registry):
    registry.add("s1", (100, 5), [location("a"), location("b", row=1)])
    registry.add("s1", (90, 6), [location("b")])
    assert registry.find(["a", "b"]) == {"b": location("b")}
    assert registry.shards() == {"s1": (90, 6)}


def test_an_item_in_two_shards_is_found_in_the_first_by_name_and_survives_its_loss(registry):
    for shard in ("s2", "s1", "s3"):
        registry.add(shard, (1, 1), [location("a", shard)])
    assert registry.find(["a"]) == {"a": location("a", "s1")}
    registry.remove(["s1", "s2"])
    assert registry.find(["a"]) == {"a": location("a", "s3")}
    assert registry.shards() == {"s3": (1, 1)}


def test_a_damaged_row_empties_the_registry_with_a_message(tmp_path):
    messages = []
    Registry(tmp_path, "parquet").add("s1", (100, 5), [location("a")])
    content = (tmp_path / "registry-parquet.sqlite").read_bytes()
    (tmp_path / "registry-parquet.sqlite").write_bytes(content.replace(b"0badf00d", b"0badf00e"))
    registry = Registry(tmp_path, "parquet", say=messages.append)
    assert registry.find(["a"]) is None
    assert "holds a damaged row" in messages[0]
    assert registry.find(["a"]) == {} and registry.shards() == {}


def test_a_removed_shard_leaves_the_registry_of_every_format(tmp_path):
    for format in ("hdf5", "parquet"):
        Registry(tmp_path, format).add("s1", (1, 1), [location("a")])
    unregister_shards(tmp_path, ["s1"])
    assert [Registry(tmp_path, format).shards() for format in ("hdf5", "parquet")] == [{}, {}]
