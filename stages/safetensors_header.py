"""Reads the header of a safetensors file without its tensors. Light: standard library only.

The format is a little-endian u64 (length of the header), the header as JSON, then the tensors' bytes
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 1 << 28
"""A longer header is taken for damage, not read into memory."""


class NotSafetensors(ValueError):
    """A file that is no safetensors file, or is cut within its header."""


class LfsPointer(NotSafetensors):
    """A Git LFS pointer, which stands for a file that was not downloaded."""


class CutShort(NotSafetensors):
    """A safetensors file that ends too early."""


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a safetensors file says about its content."""

    tensors: dict[str, Any]
    """Entry of each tensor by its name: `dtype`, `shape`, and `data_offsets` from the first byte of tensor data."""
    metadata: dict[str, str]
    data_start: int
    """Position in the file of the first byte of tensor data."""


def read_header(file: Path) -> SafetensorsHeader:
    """The header of a file.

    Raises:
        NotSafetensors: the file is of another format, or ends within the header.
        OSError: it cannot be opened.
    """
    with file.open("rb") as stream:
        head = stream.read(8)
        if head == b"version ":  # as a header's length, it would be beyond any disk
            raise LfsPointer("it is a Git LFS pointer: fetch the file itself with `git lfs pull`")
        length = int.from_bytes(head, "little")
        text = stream.read(length) if length < MAX_HEADER_BYTES else b""
        if len(text) < length < MAX_HEADER_BYTES and text.startswith(b"{"):
            raise CutShort(f"it is cut short: {len(text):,} of {length:,} bytes of its header are there")
        try:
            entries = json.loads(text or b"null")
        except ValueError as error:
            raise NotSafetensors(str(error)) from error
    if not isinstance(entries, dict):
        raise NotSafetensors("its header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    return SafetensorsHeader(tensors=entries, metadata=metadata, data_start=8 + length)
