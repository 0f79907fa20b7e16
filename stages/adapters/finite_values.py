"""Finds tensors with NaN or infinity in a safetensors file, without arrays. Light: standard library only.

A float is neither finite nor a number where every bit of its exponent is set: two bytes of it tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stages.safetensors_header import read_header

_EXPONENT = {
    "F16": (2, (0x7C, 0x00)),
    "BF16": (2, (0x7F, 0x80)),
    "F32": (4, (0x7F, 0x80)),
    "F64": (8, (0x7F, 0xF0)),
}
"""By dtype: bytes of a value, and the bits of the exponent in the last byte and in the one before it."""


def not_finite(file: Path) -> Iterator[str]:
    """The names of the tensors that hold a value which is not finite, in the order of the file.

    Raises:
        NotSafetensors, OSError: it cannot be read.
    """
    header = read_header(file)
    with file.open("rb") as stream:
        for key, entry in header.tensors.items():
            if entry["dtype"] in _EXPONENT:
                start, stop = entry["data_offsets"]
                stream.seek(header.data_start + start)
                if _holds_others(stream.read(stop - start), *_EXPONENT[entry["dtype"]]):
                    yield key


def _holds_others(data: bytes, size: int, bits: tuple[int, int]) -> bool:
    """Whether the exponent of any value has all its bits set."""
    found = -1
    for place, mask in enumerate(bits, 1):
        ones = bytes(byte & mask == mask for byte in range(256))
        found &= int.from_bytes(data[size - place :: size].translate(ones), "little")
    return found != 0
