"""Kinds of files that few write today are held to their length where they state one; what states none is said so."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from stages.errors import DatasetFaults
from stages.ingest.audio.mpeg_decoder import end_idle_decoders
from stages.ingest.faults import FileRejected
from stages.ingest.prepare_clip import open_recording
from tests.small_datasets import RATE, clips, folder, run, tone, workspace
from tests.test_ingest_lengths import decoded, fault


def written(form: str, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    audio_XA = tone(0.5)[:, :1] if form == "SVX" else tone(0.5)
    soundfile.write(buffer, audio_XA, RATE, format=form, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["NIST", "VOC"])
@pytest.mark.parametrize("cut", [4, 1000, 50_000])
def test_old_containers_that_state_a_length_are_held_to_it(form, cut):
    assert decoded(written(form))[0].length_known
    assert fault(written(form)[:-cut]) == "audio_truncated"


def test_a_nist_file_that_counts_no_samples_is_read_and_its_length_is_unknown():
    data = written("NIST").replace(b"sample_count", b"sample_other")
    recording, audio_AX = decoded(data)
    assert audio_AX.shape[1] == RATE // 2 and not recording.length_known


def test_a_voc_without_the_byte_that_ends_its_blocks_is_whole_and_a_second_block_of_sound_is_said():
    data = written("VOC")
    recording, audio_AX = decoded(data[:-1])
    assert audio_AX.shape[1] == RATE // 2 and not recording.unread
    block = data[26:-1]
    assert decoded(data[:-1] + block + bytes(1))[0].unread == "a second block of sound"


@pytest.mark.parametrize("form", ["AVR", "PAF", "PVF", "IRCAM", "MAT4", "MAT5", "MPC2K"])
def test_containers_whose_length_is_not_checked_are_read_and_it_is_noted(form):
    recording, audio_AX = decoded(written(form))
    assert audio_AX.shape[1] == RATE // 2 and not recording.length_known


@pytest.mark.parametrize(("name", "form"), [("a.voc", "VOC"), ("a.nist", "NIST"), ("a.sph", "NIST")])
def test_files_of_old_kinds_are_clips(tmp_path, name, form):
    data = folder(tmp_path / "d", {name: written(form), "a.txt": b"words"})
    _, (row,) = run(data, workspace(tmp_path))
    assert row.num_channels == 2


@pytest.mark.parametrize(
    "head", [b"RIFF\xe8\x03\0\0AVI LIST", b"FORM\0\0\x03\xe8ILBMBMHD", b"\x89PNG", b"\xff\xd8\xff\xe0"]
)
def test_a_kind_of_file_that_no_decoder_knows_is_not_judged_by_what_lies_in_the_current_folder(
    tmp_path, monkeypatch, head
):
    (tmp_path / "._").write_bytes(np.random.default_rng(0).bytes(500))
    monkeypatch.chdir(tmp_path)
    end_idle_decoders()
    data = head + struct.pack("<I", 16) + np.random.default_rng(1).bytes(2000)
    with pytest.raises(FileRejected) as caught:
        open_recording(data)
    assert "bad" not in str(caught.value.facts["why"])


@pytest.mark.parametrize("name", ["a.wav.part", "a.flac.crdownload", "a.wav.tmp"])
def test_a_caption_beside_an_unfinished_download_says_so(tmp_path, name):
    data = folder(tmp_path / "d", {name: b"bytes", "a.txt": b"words", **clips("b")})
    with pytest.raises(DatasetFaults) as caught:
        run(data, workspace(tmp_path))
    assert f"{name} lies beside it: its download or copy was not finished" in str(caught.value)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.xyz"])
def test_a_caption_beside_a_file_of_another_suffix_says_how_to_convert_that(tmp_path, name):
    data = folder(tmp_path / "d", {name: b"bytes", "a.txt": b"words", **clips("b")})
    with pytest.raises(DatasetFaults) as caught:
        run(data, workspace(tmp_path))
    (found,) = caught.value.faults
    assert (found.type, found.member) == ("missing_audio", "a.txt") and f"`ffmpeg -i {name} a.wav`" in found.msg
