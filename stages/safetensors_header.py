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


class TooLong(NotSafetensors):
    """A safetensors file with bytes behind its tensors, which no loader takes."""


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


def check_length(file: Path, header: SafetensorsHeader) -> None:
    """Check that a file holds the tensors of its header and nothing else.

    Raises:
        CutShort, TooLong.
        NotSafetensors: an entry of the header does not say where its tensor is.
    """
    try:
        end = max((int(entry["data_offsets"][1]) for entry in header.tensors.values()), default=0)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise NotSafetensors("its header is damaged") from error
    needed, found = header.data_start + end, file.stat().st_size
    if found < needed:
        raise CutShort(f"it is cut short: {found:,} of {needed:,} bytes are there")
    if found > needed:
        raise TooLong(f"{found - needed:,} bytes follow its tensors, so it is damaged")
