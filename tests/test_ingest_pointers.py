"""Git LFS pointers in place of files that were not downloaded."""

from __future__ import annotations

import pytest

from stages.errors import SourceUnreadable, WeightsNotFound
from stages.ingest.source.listing import open_source
from stages.models.checkpoint_folder import tensor_shapes
from tests.small_datasets import clips, faults, folder

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
