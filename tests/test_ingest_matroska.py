"""Matroska and WebM are held to the size that their segment states."""

from __future__ import annotations

import io

import numpy as np
import pytest

from stages.ingest.audio.decode_pyav import PyavRecording
from stages.ingest.faults import FileRejected
from stages.ingest.integrity.container import checked_file

av = pytest.importorskip("av")


def size(number: int) -> bytes:
    return (number | 1 << 56).to_bytes(8, "big")


UNKNOWN = bytes([0x01]) + b"\xff" * 7
HEADER = b"\x1a\x45\xdf\xa3" + size(4) + b"\x42\x86\x81\x01"
VOID = b"\xec\x83abc"


def file(content: bytes, stated: bytes | None = None) -> bytes:
    return HEADER + b"\x18\x53\x80\x67" + (size(len(content)) if stated is None else stated) + content


def webm(seconds: float, **options: str) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="webm", options=options) as container:
        stream = container.add_stream("libopus", rate=48_000, layout="stereo")
        audio = np.random.default_rng(1).normal(0, 0.1, (2, round(48_000 * seconds))).astype(np.float32)
        for start in range(0, audio.shape[1], 960):
            frame = av.AudioFrame.from_ndarray(audio[:, start : start + 960].copy(), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 48_000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def num_samples(recording: PyavRecording) -> int:
    return sum(len(block) for block in recording.blocks())


def test_a_whole_segment_is_the_file():
    found = checked_file(file(b"sound"))
    assert (found.data, found.length_known, found.num_stray_bytes) == (file(b"sound"), True, 0)


@pytest.mark.parametrize("kept", range(len(HEADER) + 4, len(file(b"sound"))))
def test_a_segment_that_ends_before_its_stated_size_is_cut_short(kept):
    with pytest.raises(FileRejected) as caught:
        checked_file(file(b"sound")[:kept])
    assert caught.value.type == "audio_truncated"


def test_a_segment_of_unknown_size_goes_to_the_end_and_has_no_known_length():
    live = file(b"sound", UNKNOWN)
    assert checked_file(live).data == live
    assert not checked_file(live).length_known


def test_space_before_and_behind_the_segment_is_part_of_the_file():
    spaced = HEADER + VOID + file(b"sound")[len(HEADER) :] + VOID
    assert checked_file(spaced).num_stray_bytes == 0


def test_a_second_file_behind_the_first_is_named_and_not_given_to_the_decoder():
    found = checked_file(file(b"sound") + file(b"other"))
    assert (found.data, found.unread) == (file(b"sound"), "another Matroska file")


def test_what_is_no_segment_is_a_fault():
    with pytest.raises(FileRejected) as caught:
        checked_file(HEADER + b"nothing of the kind")
    assert caught.value.type == "audio_decode_error"


def test_a_webm_that_is_cut_is_a_fault_and_the_whole_one_has_a_known_length():
    whole = webm(1.0)
    assert PyavRecording(whole).length_known
    with pytest.raises(FileRejected) as caught:
        PyavRecording(whole[:-2000])
    assert caught.value.type == "audio_truncated"


def test_of_two_webm_files_in_one_the_first_is_decoded():
    whole = webm(1.0)
    assert num_samples(PyavRecording(whole + whole)) == num_samples(PyavRecording(whole))
