"""The header of a safetensors file, read without its tensors."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from stages.safetensors_header import MAX_HEADER_BYTES, NotSafetensors, read_header


def test_shapes_metadata_and_the_place_of_the_data_are_those_of_the_file(tmp_path):
    file = tmp_path / "a.safetensors"
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    save_file({"a": tensor}, file, metadata={"format": "pt"})

    header = read_header(file)

    assert header.metadata == {"format": "pt"}
    assert header.tensors["a"]["shape"] == [2, 3]
    begin, end = header.tensors["a"]["data_offsets"]
    assert file.read_bytes()[header.data_start + begin : header.data_start + end] == tensor.numpy().tobytes()


def with_length(length: int, text: bytes) -> bytes:
    return length.to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"<!doctype html><html></html>",
        with_length(20, b'{"a": '),
        with_length(2, b"[]"),
        with_length(4, b"\xff\xfe\xff\xfe"),
        with_length(MAX_HEADER_BYTES, b"{}"),
    ],
    ids=["empty", "short", "a web page", "cut in its header", "not an object", "not text", "too long"],
)
def test_a_file_of_another_format_is_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(NotSafetensors):
        read_header(tmp_path / "a.safetensors")


def test_a_header_without_metadata_has_none(tmp_path):
    text = json.dumps({}).encode()
    (tmp_path / "a.safetensors").write_bytes(with_length(len(text), text))
    assert read_header(tmp_path / "a.safetensors").metadata == {}
