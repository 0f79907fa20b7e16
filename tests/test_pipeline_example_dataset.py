"""The example dataset."""

from __future__ import annotations

import io
import zipfile
from pathlib import PurePosixPath

import pytest
import soundfile

from pipeline.errors import PipelineError
from pipeline.example_dataset import NUM_HELD_OUT, write_example, write_held_out
from pipeline.example_style import RHYTHMS
from stages.ingest.file_types import OLD, READABLE, WITH_PYAV
from tests.small_datasets import run, workspace


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return write_example(tmp_path_factory.mktemp("example") / "example.zip")


def test_it_has_the_same_bytes_whenever_it_is_written(example, tmp_path):
    assert write_example(tmp_path / "deep" / "again.zip").read_bytes() == example.read_bytes()


def test_it_is_small_and_shows_every_format_that_needs_no_optional_package(example):
    assert example.stat().st_size < 6 << 20
    with zipfile.ZipFile(example) as archive:
        names = archive.namelist()
        found = [soundfile.info(io.BytesIO(archive.read(name))) for name in names if not name.endswith(".txt")]
    synonyms = {".wave", ".oga", ".aif", ".aifc", ".snd"}
    assert {PurePosixPath(name).suffix for name in names} - {".txt"} == READABLE - WITH_PYAV - OLD - synonyms
    assert {one.subtype for one in found} >= {"PCM_16", "PCM_24", "FLOAT", "VORBIS", "OPUS"}
    assert {one.samplerate for one in found} == {22050, 32000, 44100, 48000, 96000}
    assert all(2.0 <= one.duration <= 6.1 for one in found) and len({round(one.duration, 1) for one in found}) > 5
    assert {PurePosixPath(name).parent.name for name in names} <= {*RHYTHMS}


def test_every_clip_of_it_passes_ingest_without_a_warning(example, tmp_path):
    outcome, rows = run(example, workspace(tmp_path), native_samples=120 * 44100)
    assert outcome.facts["warnings"] == outcome.facts["skipped"] == []
    assert len(rows) == outcome.facts["num_clips"]
    assert len({row.prompt for row in rows}) > 0.9 * len(rows)
    assert all(len(row.prompt.split()) >= 5 for row in rows)
    assert outcome.facts["window_samples"] == 6 * 44100


def test_a_path_that_cannot_be_written_is_an_error_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(PipelineError, match="Choose another place"):
        write_example(tmp_path / "file" / "example.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_given_as_the_example_is_answered_with_a_file_in_it(tmp_path):
    with pytest.raises(PipelineError, match=r"is a folder\. Name the file to write, such as .*example\.zip"):
        write_example(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_held_out_clips_are_of_one_length_and_in_no_file_of_the_example(example, tmp_path):
    files = sorted(write_held_out(tmp_path / "held out").iterdir())
    assert len(files) == NUM_HELD_OUT
    assert {soundfile.info(file).duration for file in files} == {5.0}
    with zipfile.ZipFile(example) as archive:
        known = {archive.read(name) for name in archive.namelist()}
    assert known.isdisjoint(file.read_bytes() for file in files)


@pytest.mark.parametrize("content", [b"", b"not a zip", "zip"])
def test_a_file_that_is_not_the_example_is_never_replaced(tmp_path, content):
    path = tmp_path / "clips.zip"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("my song.wav", b"irreplaceable")
    before = path.read_bytes()
    with pytest.raises(PipelineError, match="is there already, and is not the example"):
        write_example(path)
    assert path.read_bytes() == before
