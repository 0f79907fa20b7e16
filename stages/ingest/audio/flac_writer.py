"""Writes prepared audio: 24-bit FLAC, one file per native window. Suffixes: A audio channels (two), X samples."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from cache.files.atomic_files import write_failure
from stages.ingest.stage import IngestParams

_FULL_SCALE = 1 << 23
_COMPRESSION_LEVEL = 0.0
"""Libsndfile takes 0 to 1. The lowest is a third faster than the default and its files are 2 % larger (measured)."""
SILENCE_DBFS = -60.0
"""A clip whose peak is below this counts as silent: it is inaudible next to other clips."""


@dataclass(frozen=True, kw_only=True)
class WrittenWindow:
    """A finished window of a recording."""

    crop_start: int
    num_samples: int
    num_clamped: int
    peak: float
    """Peak before clamping; 1 is full scale."""
    bytes_in_spool: slice
    """Byte range of its FLAC file in the spool, if there is one."""

    @property
    def is_silent(self) -> bool:
        """Whether its peak is below SILENCE_DBFS."""
        return self.peak < 10 ** (SILENCE_DBFS / 20)


class FlacWindows:
    """Writes the first native window of a recording, or all of them.

    A single window stays in memory. With several, finished ones are spooled to an unnamed file on the store's disk.
    """

    def __init__(self, params: IngestParams, folder: Path) -> None:
        self._params = params
        self._splits = params.long_clips == "split"
        self._folder = folder
        self._only: memoryview = memoryview(b"")
        self._spool: BinaryIO | None = None
        self._end = 0
        self._open: _WindowWriter | None = None
        self.written: list[WrittenWindow] = []

    @property
    def is_full(self) -> bool:
        """Whether further samples would be dropped."""
        return bool(self.written) and not self._splits

    def write(self, audio_AX: np.ndarray) -> None:
        """Add (A, X) samples; those after a full window start the next one, or are dropped."""
        while audio_AX.shape[1] and not self.is_full:
            if self._open is None:
                self._open = _WindowWriter(self._params)
            self._open.write(audio_AX[:, : self._open.num_free])
            audio_AX = audio_AX[:, self._open.last_write :]
            if not self._open.num_free:
                self._finish()

    def close(self) -> None:
        """Finish the last window."""
        if self._open is not None:
            self._finish()

    def drop_rest(self) -> None:
        """Drop a last window that is shorter than a latent frame; the first is kept, whatever its length."""
        if len(self.written) > 1 and self.written[-1].num_samples < self._params.downsampling_ratio:
            self.written.pop()

    def content(self, window: WrittenWindow) -> bytes | memoryview:
        """The FLAC file of one window."""
        if self._spool is None:
            return self._only
        self._spool.seek(window.bytes_in_spool.start)
        return self._spool.read(window.bytes_in_spool.stop - window.bytes_in_spool.start)

    def _finish(self) -> None:
        assert self._open is not None
        done, self._open = self._open, None
        content = done.content()
        self._keep(content)
        self.written.append(
            WrittenWindow(
                crop_start=len(self.written) * self._params.native_samples,
                num_samples=done.num_samples,
                num_clamped=done.num_clamped,
                peak=done.peak,
                bytes_in_spool=slice(self._end, self._end + len(content)),
            )
        )
        self._end += len(content)

    def _keep(self, content: memoryview) -> None:
        if not self._splits:
            self._only = content
            return
        try:
            if self._spool is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._spool = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            self._spool.seek(self._end)
            self._spool.write(content)
        except OSError as error:
            raise write_failure(self._folder / "windows", error) from error


class _WindowWriter:
    """Writes one FLAC file in memory; a 16 or 24 bit source at the model's rate is stored losslessly."""

    def __init__(self, params: IngestParams) -> None:
        self._buffer = io.BytesIO()
        form = {"samplerate": params.sample_rate_hz, "channels": 2, "format": "FLAC", "subtype": "PCM_24"}
        self._file = soundfile.SoundFile(self._buffer, "w", **form, compression_level=_COMPRESSION_LEVEL)
        self.num_free = params.native_samples
        """Samples that still fit."""
        self.last_write = 0
        """Samples of the last call of `write`."""
        self.num_samples = 0
        self.num_clamped = 0
        self.peak = 0.0

    def write(self, audio_AX: np.ndarray) -> None:
        """Add (A, X) samples, at most `num_free`."""
        peak = max(float(audio_AX.max()), -float(audio_AX.min()))
        self.peak = max(self.peak, peak)
        if peak > 1.0:
            self.num_clamped += int(np.count_nonzero(np.abs(audio_AX) > 1.0))
        self._file.write(_as_24_bit(audio_AX))
        self.last_write = audio_AX.shape[1]
        self.num_free -= self.last_write
        self.num_samples += self.last_write

    def content(self) -> memoryview:
        """The finished file."""
        self._file.close()
        return self._buffer.getbuffer()


def _as_24_bit(audio_AX: np.ndarray) -> np.ndarray:
    """(X, A) int32: nearest 24-bit values, clamped to [-1, 1), in the upper bits as libsndfile expects them."""
    scaled_XA = np.empty(audio_AX.T.shape, np.float32)
    np.clip(audio_AX.T, np.float32(-1), np.float32(1 - 1 / _FULL_SCALE), out=scaled_XA)
    scaled_XA *= np.float32(_FULL_SCALE)
    np.rint(scaled_XA, out=scaled_XA)
    whole_XA = scaled_XA.astype(np.int32)
    whole_XA <<= 8
    return whole_XA


def window_starts(num_samples_whole: int, params: IngestParams) -> Iterator[int]:
    """First sample of each window of a recording of this length."""
    yield 0
    if params.long_clips == "split":
        native = params.native_samples
        yield from range(native, num_samples_whole - params.downsampling_ratio + 1, native)
