"""Writes generated audio as a WAV or FLAC file of 24 bits, whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path

import soundfile
from torch import Tensor

from cache.files.atomic_files import atomic_write_bytes

FORMATS = {".wav": "WAV", ".flac": "FLAC"}


def write_audio(file: Path, audio_AX: Tensor, sample_rate_hz: int) -> None:
    """Write (2, X) samples in [-1, 1]; the file's suffix decides the format.

    Raises:
        cache.errors.WriteFailed: the disk is full, or the folder is not writable.
    """
    content = io.BytesIO()
    soundfile.write(content, audio_AX.T.numpy(), sample_rate_hz, format=FORMATS[file.suffix.lower()], subtype="PCM_24")
    atomic_write_bytes(file, content.getvalue())
