"""Sources of clips for training: stored latents, or prepared audio that is encoded inside the loop.

Each counts the length of a clip in its own unit (frames, or samples); a random crop starts at a multiple of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cache.location import Location
from cache.manifest import Columns, read_columns, read_rows
from cache.shard_pool import ShardPool
from stages.contract import Artifact
from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.records import Clip, EncodedClip, ModelSpec
from stages.train.dataset.sample_ranges import SampleRange

# C latent channels, T frames, A audio channels, X samples: the legend of ARCHITECTURE.md.

SILENCE_FRAMES = 64
"""Frames of silence encoded when training from audio starts; latents of silence soon repeat themselves."""

LATENT_CACHE_BYTES = 2 << 30
"""Latents kept in memory, so that clips need not be read or encoded again: about a thousand whole clips of the
largest model in the cache's fp16."""


@dataclass(frozen=True, kw_only=True)
class ClipEntry:
    """One clip, apart from its latents."""

    clip_id: str
    prompt_key: str
    seconds_total: float
    """Duration of the whole recording."""
    size: int
    """Length in the source's unit."""


class ClipLengths(Protocol):
    """Lengths of the clips: all that decides which of them a step sees."""

    @property
    def sizes(self) -> np.ndarray:
        """(clips,) int64, length of each in units."""

    @property
    def window(self) -> int:
        """Longest excerpt, in units."""

    @property
    def samples_per_unit(self) -> int: ...

    @property
    def samples_per_frame(self) -> int: ...

    @property
    def sample_rate_hz(self) -> int: ...


class Clips(ClipLengths, Protocol):
    """A source of clips."""

    @property
    def entries(self) -> Sequence[ClipEntry]: ...

    @property
    def window_samples(self) -> int: ...

    @property
    def flips(self) -> bool:
        """Whether clips can be read with their sign flipped."""

    @property
    def silence_CT(self) -> Tensor:
        """Latents of silence, float32."""

    def read(self, index: int, start: int, flipped: bool) -> Tensor:
        """(C, T) float32 latents of one clip from unit `start`, at most a window long."""


def window_frames(clips: ClipLengths) -> int:
    """Frames of the longest excerpt."""
    return -(-clips.window * clips.samples_per_unit // clips.samples_per_frame)


def excerpt_frames(clips: Clips, index: int) -> int:
    """Frames of one clip's excerpt, wherever it starts."""
    return int(all_excerpt_frames(clips, clips.sizes[index : index + 1])[0])


def all_excerpt_frames(clips: ClipLengths, sizes: np.ndarray | None = None) -> np.ndarray:
    """(clips,) int64: frames of every clip's excerpt, or of excerpts of clips of the given sizes."""
    units = np.minimum(clips.sizes if sizes is None else sizes, clips.window).astype(np.int64)
    return -(-units * clips.samples_per_unit // clips.samples_per_frame)


def excerpt_seconds(clips: Clips, index: int) -> float:
    """Duration of one clip's excerpt, rounded up to seconds as recordings are; never above the recording's own.

    A stored clip is counted in whole frames, so the end of a split recording may seem one second longer.
    """
    entry = clips.entries[index]
    samples = clips.window_samples if entry.size > clips.window else entry.size * clips.samples_per_unit
    return min(entry.seconds_total, float(-(-samples // clips.sample_rate_hz)))


def num_cached(sizes_bytes: np.ndarray, limit: int | None = None) -> int:
    """How many of the first clips fit into the cache in memory together; a cached clip stays until the end.

    (Keeping the latest ones instead would help little: an epoch comes back to a clip when all others were read.)

    Args:
        limit: bytes; None: `LATENT_CACHE_BYTES`.
    """
    return int(np.searchsorted(np.cumsum(sizes_bytes), LATENT_CACHE_BYTES if limit is None else limit, side="right"))


class StoredEntries(Sequence[ClipEntry]):
    """Entries of an encode artifact, each made on access: a million of them at once would take 0.2 GiB."""

    def __init__(self, rows: Columns[EncodedClip]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return ClipEntry(
            clip_id=self._rows.value("clip_id", index),
            prompt_key=self._rows.value("prompt_key", index),
            seconds_total=self._rows.value("seconds_total", index),
            size=self._rows.value("num_valid_frames", index),
        )


class StoredLatents:
    """Clips of an encode artifact; neither autoencoder nor text encoder is needed.

    As many as fit into `LATENT_CACHE_BYTES` are kept in memory as they are stored, each read once and whole; crops of
    the others are read when they are needed.
    """

    flips = False

    def __init__(self, artifact: Artifact, pool: ShardPool, model: ModelSpec) -> None:
        self.rows = read_columns(artifact.directory / "manifest.parquet", EncodedClip)
        self.entries, self.sizes = StoredEntries(self.rows), self.rows.numbers("num_valid_frames")
        self.pool = pool
        self.window, self.window_samples = (int(artifact.facts[f"window_{unit}"]) for unit in ("frames", "samples"))
        self.samples_per_unit = self.samples_per_frame = model.downsampling_ratio
        self.sample_rate_hz = model.sample_rate_hz
        silence_TC = pool.read(Location.from_record(artifact.facts["silence"]))
        self.silence_CT = to_latents(silence_TC)
        self._num_cached = num_cached(self.sizes * silence_TC[0].nbytes)
        self._cache: dict[int, np.ndarray] = {}

    def read(self, index: int, start: int, flipped: bool) -> Tensor:
        """(C, T) float32: one crop. `flipped` is always False: latents of a flipped signal cannot be derived."""
        size = int(self.sizes[index])
        stop = min(start + self.window, size)
        if index >= self._num_cached:
            return to_latents(self._stored(index, start, stop))
        if index not in self._cache:
            self._cache[index] = self._stored(index, 0, size)
        return to_latents(self._cache[index][start:stop])

    def _stored(self, index: int, start: int, stop: int) -> np.ndarray:
        """(stop - start, C) frames as they are stored; reads no others."""
        return self.pool.read(self.rows[index].location, start, stop)


def to_latents(frames_TC: np.ndarray) -> Tensor:
    """(C, T) float32 copy of the stored (T, C)."""
    # Three times as fast as numpy's copy, which widens and transposes at once.
    return torch.from_numpy(frames_TC).T.clone(memory_format=torch.contiguous_format).float()


class LiveLatents:
    """Clips of an ingest artifact, encoded when they are read.

    The same audio encodes to the same latents, so latents of clips no longer than the window are kept, with either
    sign, as many as fit into `LATENT_CACHE_BYTES`.
    """

    flips = True
    samples_per_unit = 1

    def __init__(self, artifact: Artifact, shared: Path, model: ModelSpec, autoencoder: Autoencoder) -> None:
        self.rows = read_rows(artifact.directory / "manifest.parquet", Clip)
        self.entries = [
            ClipEntry(clip_id=row.clip_id, prompt_key=row.prompt, seconds_total=row.seconds_total, size=row.num_samples)
            for row in self.rows
        ]
        self.sizes = np.array([row.num_samples for row in self.rows])
        self.shared, self.autoencoder = shared, autoencoder
        self.window = self.window_samples = int(artifact.facts["window_samples"])
        self.samples_per_frame, self.sample_rate_hz = model.downsampling_ratio, model.sample_rate_hz
        self.silence_CT = self._encoded(np.zeros((2, SILENCE_FRAMES * self.samples_per_frame), dtype=np.float32))
        self._num_cached = num_cached(self._cacheable_bytes())
        self._cache: dict[tuple[int, bool], Tensor] = {}
        self.prefetched: Mapping[SampleRange, np.ndarray] = {}
        """Samples that `AudioPrefetcher` has decoded already."""

    def is_cacheable(self, index: int) -> bool:
        """Whether latents of a clip are kept, so that its samples are decoded once for each sign."""
        return bool(index < self._num_cached and self.sizes[index] <= self.window)

    def is_cached(self, index: int, flipped: bool) -> bool:
        """Whether latents of a clip with this sign are in memory."""
        return (index, flipped) in self._cache

    def sample_range(self, index: int, start: int) -> SampleRange:
        """The file and samples of a crop."""
        row = self.rows[index]
        return SampleRange(self.shared / row.audio, start, min(start + self.window, row.num_samples))

    def read(self, index: int, start: int, flipped: bool) -> Tensor:
        """(C, T) float32: the crop, sign flipped if asked, encoded as if silence followed it."""
        cached = self._cache.get((index, flipped))
        if cached is not None:
            return cached
        samples = self.sample_range(index, start)
        prefetched_AX = self.prefetched.get(samples)
        audio_AX = samples.read() if prefetched_AX is None else prefetched_AX
        latents_CT = self._encoded(-audio_AX if flipped else audio_AX)
        if self.is_cacheable(index):
            self._cache[index, flipped] = latents_CT
        return latents_CT

    def _cacheable_bytes(self) -> np.ndarray:
        """(clips,) bytes of both signs; 0 for a clip that is cropped, as a crop hardly ever comes again."""
        bytes_per_frame = 2 * self.silence_CT[:, 0].numel() * self.silence_CT.element_size()
        return np.where(self.sizes > self.window, 0, all_excerpt_frames(self) * bytes_per_frame)

    @torch.no_grad()
    def _encoded(self, audio_AX: np.ndarray) -> Tensor:
        parameter = next(self.autoencoder.parameters())
        audio = torch.from_numpy(np.ascontiguousarray(audio_AX)).to(parameter.device, parameter.dtype)
        latents_CT: Tensor = self.autoencoder.encode_clip(audio)
        return latents_CT.float().cpu()
