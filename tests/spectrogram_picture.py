"""Pictures of sounds: levels of mel bands over time, in grey, as PNG. Q is the number of bands."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stages.pretrain.autoencoder.spectra import Spectra

WINDOW, NUM_BANDS = 2048, 160
QUIETEST_DB, LOUDEST_DB = -90.0, -10.0
GAP = 4
"""Rows between two sounds."""


def write_picture(sounds_AX: Sequence[Tensor], file: Path) -> None:
    """One below another, the mean of the channels of each; low bands are at the bottom."""
    pictures = [levels(sound_AX) for sound_AX in sounds_AX]
    gap = torch.full((GAP, pictures[0].shape[1]), 128, dtype=torch.uint8)
    rows = [row for picture in pictures for row in (picture, gap)][:-1]
    file.write_bytes(png(torch.cat(rows)))


def levels(sound_AX: Tensor) -> Tensor:
    """(Q, T) bytes: black at -90 dB and below, white at -10 dB and above, the highest band first."""
    spectra = Spectra(WINDOW, NUM_BANDS)
    powers = spectra.bands @ spectra.powers(sound_AX.float().mean(dim=0, keepdim=True))[0]
    level_db = 10 * torch.log10(powers + 1e-12)
    return ((level_db - QUIETEST_DB) / (LOUDEST_DB - QUIETEST_DB) * 255).clamp(0, 255).byte().flip(0)


def png(grey_YX: Tensor) -> bytes:
    """A PNG of 8-bit grey pixels (W3C, PNG third edition): header, one deflated block of unfiltered rows, end."""
    height, width = grey_YX.shape
    rows = b"".join(b"\0" + bytes(row.tolist()) for row in grey_YX)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in parts)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
