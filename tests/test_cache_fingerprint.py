"""Fingerprints and digests depend on content, and on nothing else."""

from __future__ import annotations

import enum
import hashlib
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import CannotFingerprint
from cache.fingerprint import canonical, digest_bytes, digest_file, digest_stream, fingerprint

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aé水\n")
)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text("abé"), inner), max_leaves=12)


@dataclass(frozen=True)
class Params:
    rank: int
    filters: tuple[str, ...] = ()


@dataclass
class Changeable:
    rank: int


class Kind(enum.StrEnum):
    LORA = "lora"


def test_canonical_bytes_are_sorted_compact_utf8_json():
    assert canonical({"b": (1, 2.0), "a": "é", "c": None}) == '{"a":"é","b":[1,2.0],"c":null}'.encode()


@settings(deadline=None, max_examples=100)
@given(values)
def test_canonical_bytes_read_back_as_the_value(value):
    assert json.loads(canonical(value)) == value


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text("abcdé"), scalars, min_size=2), st.randoms(use_true_random=True))
def test_the_order_of_keys_does_not_matter(record, random):
    shuffled = list(record.items())
    random.shuffle(shuffled)
    assert fingerprint("tag", dict(shuffled)) == fingerprint("tag", record)


def test_a_fingerprint_is_the_same_on_every_machine_and_day():
    name = fingerprint("encode", {"params": {"chunk_seconds": 0.1, "filters": ["a"]}, "version": 3})
    text = '["encode",{"params":{"chunk_seconds":0.1,"filters":["a"]},"version":3}]'
    assert name == hashlib.sha256(text.encode()).hexdigest()


def test_the_tag_is_part_of_the_name():
    assert fingerprint("ingest", {"a": 1}) != fingerprint("encode", {"a": 1})


def test_a_frozen_dataclass_counts_as_the_mapping_of_its_fields():
    assert canonical(Params(rank=4, filters=("a",))) == canonical({"filters": ["a"], "rank": 4})


def test_one_and_one_point_zero_and_true_are_three_names():
    assert len({fingerprint("t", {"a": value}) for value in (1, 1.0, True)}) == 3


@pytest.mark.parametrize(
    "value",
    [
        Path("a"),
        math.nan,
        math.inf,
        {1, 2},
        b"x",
        Kind.LORA,
        np.float64(1),
        np.int64(1),
        Changeable(1),
        Params,
        "\ud800",
    ],
    ids=repr,
)
def test_what_could_mean_different_things_is_refused_with_its_path(value):
    with pytest.raises(CannotFingerprint, match=r"^params\.layers\[1\] cannot be fingerprinted: .*Use str"):
        fingerprint("t", {"params": {"layers": [0, value]}})


def test_keys_must_be_text():
    with pytest.raises(CannotFingerprint, match="the key 1 is not a str"):
        canonical({1: "a"})


def test_digests_of_bytes_streams_and_files_agree(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "clip.wav").write_bytes(content)
    expected = "sha256:" + hashlib.sha256(content).hexdigest()
    assert digest_bytes(content) == expected
    assert digest_stream(io.BytesIO(content)) == expected
    assert digest_file(tmp_path / "clip.wav") == expected
