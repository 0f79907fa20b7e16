"""The wording of warnings about recordings: singular where there is one of a thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stages.contract import Member
from stages.ingest.clip_warnings import same_sounds
from stages.ingest.faults import WARNINGS
from tests.small_datasets import folder, run, sound, tone, workspace


def notes(place: Path, audio_XA: np.ndarray) -> list[str]:
    data = folder(place / "d", {"a.wav": sound(audio_XA, subtype="FLOAT"), "a.txt": b"tone"})
    outcome, _ = run(data, workspace(place))
    return [one["msg"] for one in outcome.facts["warnings"]]


def test_one_sample_beyond_full_scale_is_worded_in_the_singular(tmp_path):
    audio_XA = tone()
    audio_XA[100, 0] = 1.5
    assert notes(tmp_path, audio_XA) == ["1 sample is beyond full scale (peak 1.500) and is clamped."]


def test_one_stretch_of_silence_is_worded_in_the_singular(tmp_path):
    audio_XA = tone(2.0)
    audio_XA[30_000:60_000] = 0
    said = "1 stretch of exact silence begins abruptly: parts of the file may be missing. Listen to it."
    assert notes(tmp_path, audio_XA) == [said]


def test_audio_files_of_the_same_bytes_are_noted_once_for_all_of_them():
    members = [Member(name=name, num_bytes=1, digest=digest) for name, digest in zip("cabd", "xxyx", strict=True)]
    (found,) = same_sounds(members)
    assert (found.member, found.type) == ("a", "same_sound")
    assert "the same bytes as c, d, so that sound counts 3 times" in found.msg


def test_a_clip_beyond_the_native_length_is_told_how_all_of_it_is_used():
    assert "--long-clips split" in WARNINGS["cropped_to_native"]
