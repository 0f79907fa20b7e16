"""Prepared audio as it grows: FLAC, 24 bit, one file per native window. Suffixes: N samples, C channels (two)."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from cache.atomic_files import write_failure
from stages.ingest.stage import IngestParams

_FULL_SCALE = 1 << 23
_COMPRESSION_LEVEL = 0.0
"""libsndfile's 0 to 1. The fastest writes a third faster than the usual level and takes 2 % more room (measured)."""
SILENCE_DBFS = -60.0
"""A clip whose peak stays below this is silent: nothing in it would be heard beside other clips."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """One window of a recording, finished."""

    crop_start: int
    num_samples: int
    num_clamped: int
    peak: float
    """Before clamping; 1 is full scale."""
    place: slice
    """Of its bytes among those of the whole recording."""

    @property
    def is_silent(self) -> bool:
        return self.peak < 10 ** (SILENCE_DBFS / 20)


class FlacWindows:
    """The first native window of a recording, or all of them.

    One window stays in memory, where it grew; of several, finished ones wait on the store's own disk, without a name.
    """

    def __init__(self, params: IngestParams, folder: Path) -> None:
        self._params = params
        self._splits = params.long_clips == "split"
        self._folder = folder
        self._only: memoryview = memoryview(b"")
        self._spool: BinaryIO | None = None
        self._end = 0
        self._open: _Window | None = None
        self.written: list[Written] = []

    @property
    def is_full(self) -> bool:
        """Nothing more would be kept."""
        return bool(self.written) and not self._splits

    def write(self, audio_CN: np.ndarray) -> None:
        """Add samples; what follows a full window begins the next, or is dropped."""
        while audio_CN.shape[1] and not self.is_full:
            if self._open is None:
                self._open = _Window(self._params)
            self._open.write(audio_CN[:, : self._open.room])
            audio_CN = audio_CN[:, self._open.last_write :]
            if not self._open.room:
                self._finish()

    def close(self) -> None:
        """Finish the last window."""
        if self._open is not None:
            self._finish()

    def drop_rest(self) -> None:
        """Forget a last window that fills no latent frame; the first is kept, whatever its length."""
        if len(self.written) > 1 and self.written[-1].num_samples < self._params.downsampling_ratio:
            self.written.pop()

    def content(self, window: Written) -> bytes | memoryview:
        """The FLAC file of one window."""
        if self._spool is None:
            return self._only
        self._spool.seek(window.place.start)
        return self._spool.read(window.place.stop - window.place.start)

    def _finish(self) -> None:
        assert self._open is not None
        done, self._open = self._open, None
        content = done.content()
        self._keep(content)
        self.written.append(
            Written(
                crop_start=len(self.written) * self._params.native_samples,
                num_samples=done.num_samples,
                num_clamped=done.num_clamped,
                peak=done.peak,
                place=slice(self._end, self._end + len(content)),
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


class _Window:
    """FLAC growing in memory; a 16 or 24 bit source at the model's rate comes back bit for bit."""

    def __init__(self, params: IngestParams) -> None:
        self._buffer = io.BytesIO()
        form = {"samplerate": params.sample_rate_hz, "channels": 2, "format": "FLAC", "subtype": "PCM_24"}
        self._file = soundfile.SoundFile(self._buffer, "w", **form, compression_level=_COMPRESSION_LEVEL)
        self.room = params.native_samples
        self.last_write = 0
        self.num_samples = 0
        self.num_clamped = 0
        self.peak = 0.0

    def write(self, audio_CN: np.ndarray) -> None:
        """Add samples, at most as many as there is room for."""
        peak = max(float(audio_CN.max()), -float(audio_CN.min()))
        self.peak = max(self.peak, peak)
        if peak > 1.0:
            self.num_clamped += int(np.count_nonzero(np.abs(audio_CN) > 1.0))
        self._file.write(_as_24_bit(audio_CN))
        self.last_write = audio_CN.shape[1]
        self.room -= self.last_write
        self.num_samples += self.last_write

    def content(self) -> memoryview:
        """The finished file."""
        self._file.close()
        return self._buffer.getbuffer()


def _as_24_bit(audio_CN: np.ndarray) -> np.ndarray:
    """(N, C): nearest 24 bit values, clamped to [-1, 1), in the upper bits of int32 as libsndfile takes them."""
    scaled_NC = np.empty(audio_CN.T.shape, np.float32)
    np.clip(audio_CN.T, np.float32(-1), np.float32(1 - 1 / _FULL_SCALE), out=scaled_NC)
    scaled_NC *= np.float32(_FULL_SCALE)
    np.rint(scaled_NC, out=scaled_NC)
    whole_NC = scaled_NC.astype(np.int32)
    whole_NC <<= 8
    return whole_NC


def window_starts(num_samples_whole: int, params: IngestParams) -> Iterator[int]:
    """First samples of the windows that a recording of this length makes."""
    yield 0
    if params.long_clips == "split":
        native = params.native_samples
        yield from range(native, num_samples_whole - params.downsampling_ratio + 1, native)
