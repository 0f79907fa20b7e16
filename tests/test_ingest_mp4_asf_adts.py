"""MP4 boxes, ASF objects and ADTS frames of arbitrary bytes give a count or a fault."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.ingest.faults import FileRejected
from stages.ingest.integrity.mp4_asf_adts import check_adts, is_streamed_asf, stray_bytes

ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
any_size = st.integers(0, 80) | st.sampled_from([2**32 - 1, 2**31])
any_name = st.sampled_from([b"moov", b"mdat", b"free", b"uuid"]) | st.binary(min_size=4, max_size=4)
any_boxes = st.lists(
    st.builds(
        lambda size, name, rest: struct.pack(">I4s", size, name) + rest, any_size, any_name, st.binary(max_size=80)
    )
)
any_objects = st.lists(
    st.builds(
        lambda name, size, rest: name + struct.pack("<Q", size) + rest,
        st.just(ASF_FILE) | st.binary(min_size=16, max_size=16),
        st.integers(0, 200) | st.just(2**64 - 1),
        st.binary(max_size=120),
    )
)
any_frames = st.lists(st.just(b"\xff\xf1\x50\x80\x01\x1f\xfc" + bytes(1)) | st.binary(max_size=12)).map(b"".join)


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def asf(declared: int, rest: bytes) -> bytes:
    """A file whose properties declare that many bytes."""
    properties = ASF_FILE + struct.pack("<Q", 104) + bytes(16) + struct.pack("<Q", declared) + bytes(56)
    return ASF_HEADER + struct.pack("<QI2s", 30 + len(properties), 1, b"\1\2") + properties + rest


def judged(data: bytes) -> int | str:
    try:
        return stray_bytes(data)
    except FileRejected as rejection:
        return rejection.type


@settings(deadline=None, max_examples=150)
@given(any_boxes, st.binary(max_size=20))
def test_any_boxes_give_a_count_or_are_truncated(boxes, rest):
    found = judged(box(b"ftyp", b"M4A ") + b"".join(boxes) + rest)
    assert found == "audio_truncated" or 0 <= found <= sum(map(len, boxes)) + len(rest)


@settings(deadline=None, max_examples=150)
@given(any_objects, st.integers(0, 2**64 - 1), st.binary(max_size=20))
def test_any_objects_give_a_count_or_are_truncated(objects, stop, rest):
    data = ASF_HEADER + struct.pack("<QI2s", stop, len(objects), b"\1\2") + b"".join(objects) + rest
    found = judged(data)
    assert found == "audio_truncated" or 0 <= found <= len(data)


@settings(deadline=None, max_examples=150)
@given(any_frames)
def test_any_frames_are_accepted_or_rejected_as_raw_aac(data):
    try:
        check_adts(data)
    except FileRejected as rejection:
        assert rejection.type in {"audio_truncated", "audio_decode_error"}


@given(st.binary(max_size=40), st.data())
def test_a_file_cut_anywhere_inside_its_last_box_is_truncated(content, data):
    whole = box(b"ftyp", b"M4A ") + box(b"mdat", content) + box(b"moov", content)
    assert judged(whole) == 0
    end = data.draw(st.integers(len(whole) - len(content), len(whole)))
    assert judged(whole[:end]) == (0 if end == len(whole) else "audio_truncated")


@pytest.mark.parametrize(("declared", "verdict"), [(200, "audio_truncated"), (144, 0), (140, 4), (0, 0)])
def test_a_wma_is_as_long_as_its_properties_say(declared, verdict):
    assert judged(asf(declared, bytes(10))) == verdict


def test_other_files_are_not_checked_here():
    assert judged(b"RIFF" + bytes(40)) == judged(b"") == judged(b"\0" * 8) == 0


def test_a_streamed_wma_is_known_by_its_flag():
    streamed = bytearray(asf(0, b""))
    streamed[30 + 88] = 1
    assert is_streamed_asf(bytes(streamed)) and not is_streamed_asf(asf(200, b"")) and not is_streamed_asf(b"RIFF")


def test_another_mp4_after_the_first_is_counted_as_bytes_that_are_not_read():
    whole = box(b"ftyp", b"M4A ") + box(b"mdat", b"abc") + box(b"moov", b"def")
    assert judged(whole + whole) == len(whole)
