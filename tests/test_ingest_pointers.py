"""Git LFS pointers in place of files that were not downloaded."""

from __future__ import annotations

import pytest

from pipeline.errors import RecipeError
from pipeline.request.recipe import read_recipe
from stages.errors import DatasetFaults, SourceUnreadable, WeightsNotFound
from stages.ingest.source.listing import open_source
from stages.models.checkpoint_folder import tensor_shapes
from stages.text import UnknownEncoding, decoded
from tests.small_datasets import clips, faults, folder, run, sound, workspace

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 34\n"


@pytest.mark.parametrize("suffix", ["txt", "wav", "flac", "mp3", "ogg", "json"])
def test_a_pointer_in_place_of_audio_caption_or_sidecar_is_named_as_such(tmp_path, suffix):
    others = clips("b") if suffix in ("txt", "wav", "json") else {"b.txt": b"a tone"}
    data = folder(tmp_path / "d", {**clips("a"), **others, f"b.{suffix}": POINTER})
    template = {"caption_template": "{caption}"} if suffix == "json" else {}
    assert faults(data, tmp_path, **template) == [(f"b.{suffix}", "lfs_pointer")]


def test_a_pointer_in_place_of_the_zip_is_named_as_such(tmp_path):
    (tmp_path / "d.zip").write_bytes(POINTER)
    with pytest.raises(SourceUnreadable, match=r"Git LFS pointer.*git lfs pull"):
        open_source(tmp_path / "d.zip")


def test_a_pointer_in_place_of_weights_is_named_as_such(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(WeightsNotFound, match=r"Git LFS pointer.*git lfs pull"):
        tensor_shapes(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "audio_not_there: it is empty"), (b"<!DOCTYPE html><html>", "by its content it is a web page")],
)
def test_audio_that_was_not_downloaded_is_called_what_it_is(tmp_path, content, said):
    with pytest.raises(DatasetFaults, match=said):
        run(folder(tmp_path / "d", {"a.wav": content, "a.txt": b"x"}), workspace(tmp_path))


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("bits", [16, 32])
def test_wide_text_without_its_mark_is_named(order, bits):
    with pytest.raises(UnknownEncoding, match=f"UTF-{bits} .{order}-endian. without"):
        decoded("warm pad".encode(f"utf-{bits}-{order[0]}e"))
    with pytest.raises(UnknownEncoding, match=f"UTF-{bits} .{order}-endian. without"):
        decoded("warm pad".encode(f"utf-{bits}-{order[0]}e") + b"\n")


@pytest.mark.parametrize("field", ["trigger_phrase", "caption_template", "captions"])
def test_a_text_of_a_request_that_is_not_utf8_is_a_fault_of_that_field(field):
    with pytest.raises(RecipeError, match=f"{field}: must be plain text; it holds half of a surrogate pair"):
        read_recipe("clips.zip", {field: "{a}\udcff"})


def test_what_a_template_makes_is_not_said_of_the_audio(tmp_path):
    data = folder(tmp_path / "d", {"a.wav": sound(), "a.json": b'{"genre": "d\\u0000b"}'})
    with pytest.raises(DatasetFaults, match=r"the template makes of it \(from a.json\) holds NUL"):
        run(data, workspace(tmp_path), caption_template="{genre}")
