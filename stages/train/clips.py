"""What a training reads its clips from: stored latents, or prepared audio encoded inside the loop.

Both count a clip in units of their own (frames, or samples), so that a random crop is a start in those units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cache.manifest import read_rows
from cache.shelf import Location, Shelf
from stages.contract import Artifact
from stages.models._nets.autoencoder import Autoencoder
from stages.prepared import read_prepared
from stages.records import Clip, EncodedClip, ModelSpec

# C latent channels, T frames.

SILENCE_FRAMES = 64
"""Frames of silence encoded inside the loop's own start; latents of silence soon repeat themselves."""

REMEMBERED_BYTES = 1 << 30
"""Latents kept in memory by `LiveLatents`."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One clip, apart from its latents."""

    clip_id: str
    prompt_key: str
    seconds_total: float
    """Of the whole recording."""
    size: int
    """Length in the source's unit."""


class Clips(Protocol):
    """A source of clips."""

    @property
    def subjects(self) -> Sequence[Subject]: ...

    @property
    def window(self) -> int:
        """Longest excerpt, in units."""

    @property
    def samples_per_unit(self) -> int: ...

    @property
    def samples_per_frame(self) -> int: ...

    @property
    def sample_rate_hz(self) -> int: ...

    @property
    def flips(self) -> bool:
        """Whether a clip can be had with its sign flipped."""

    @property
    def silence_CT(self) -> Tensor:
        """Latents of silence, float32."""

    def read(self, index: int, start: int, flipped: bool) -> Tensor:
        """(C, T) float32 latents of one clip from unit `start`, at most a window long."""


def excerpt_frames(clips: Clips, index: int) -> int:
    """Frames of one clip's excerpt, wherever it starts."""
    units = min(clips.subjects[index].size, clips.window)
    return -(-units * clips.samples_per_unit // clips.samples_per_frame)


class StoredLatents:
    """Clips of an encode artifact; neither autoencoder nor text encoder is needed."""

    flips = False

    def __init__(self, artifact: Artifact, shelf: Shelf, model: ModelSpec) -> None:
        self.rows = read_rows(artifact.directory / "manifest.parquet", EncodedClip)
        self.subjects = [
            Subject(
                clip_id=row.clip_id,
                prompt_key=row.prompt_key,
                seconds_total=row.seconds_total,
                size=row.num_valid_frames,
            )
            for row in self.rows
        ]
        self.shelf = shelf
        self.window = int(artifact.facts["window_frames"])
        self.samples_per_unit = self.samples_per_frame = model.downsampling_ratio
        self.sample_rate_hz = model.sample_rate_hz
        self.silence_CT = self._stored(location_of(artifact.facts["silence"]))

    def read(self, index: int, start: int, flipped: bool) -> Tensor:
        """Reads the crop, not the clip. `flipped` is never asked for: a sign cannot be taken back from latents."""
        row = self.rows[index]
        location = Location(
            item_key=row.item_key, shard=row.shard, row=row.row, num_frames=row.num_frames, checksum=row.checksum
        )
        return self._stored(location, start, min(start + self.window, row.num_valid_frames))

    def _stored(self, location: Location, start: int = 0, stop: int | None = None) -> Tensor:
        return latents_of(self.shelf.read(location, start, stop))


def location_of(record: Mapping[str, Any]) -> Location:
    """A place in a shelf, from the JSON of a receipt."""
    return Location(**{name: record[name] for name in ("item_key", "shard", "row", "num_frames", "checksum")})


def latents_of(frames_TC: np.ndarray) -> Tensor:
    """(C, T) float32 from the stored (T, C)."""
    return torch.from_numpy(np.array(frames_TC.T, dtype=np.float32, order="C"))


class LiveLatents:
    """Clips of an ingest artifact, encoded when they are read.

    Latents of whole clips are remembered up to a limit: the same audio encodes to the same latents.
    """

    flips = True
    samples_per_unit = 1

    def __init__(self, artifact: Artifact, shared: Path, model: ModelSpec, autoencoder: Autoencoder) -> None:
        self.rows = read_rows(artifact.directory / "manifest.parquet", Clip)
        self.subjects = [
            Subject(clip_id=row.clip_id, prompt_key=row.prompt, seconds_total=row.seconds_total, size=row.num_samples)
            for row in self.rows
        ]
        self.shared, self.autoencoder = shared, autoencoder
        self.window = int(artifact.facts["window_samples"])
        self.samples_per_frame, self.sample_rate_hz = model.downsampling_ratio, model.sample_rate_hz
        self._remembered: dict[tuple[int, bool], Tensor] = {}
        self._remembered_bytes = 0
        self.silence_CT = self._encoded(np.zeros((2, SILENCE_FRAMES * self.samples_per_frame), dtype=np.float32))

    def read(self, index: int, start: int, flipped: bool) -> Tensor:
        """Reads the crop's samples, flips their sign if asked, and encodes them with silence behind."""
        known = self._remembered.get((index, flipped))
        if known is not None:
            return known
        row = self.rows[index]
        audio_CL = read_prepared(self.shared / row.audio, start, min(start + self.window, row.num_samples))
        latents_CT = self._encoded(-audio_CL if flipped else audio_CL)
        if row.num_samples <= self.window:
            self._remember((index, flipped), latents_CT)
        return latents_CT

    @torch.no_grad()
    def _encoded(self, audio_CL: np.ndarray) -> Tensor:
        parameter = next(self.autoencoder.parameters())
        audio = torch.from_numpy(np.ascontiguousarray(audio_CL)).to(parameter.device, parameter.dtype)
        latents_CT: Tensor = self.autoencoder.encode_clip(audio)
        return latents_CT.float().cpu()

    def _remember(self, key: tuple[int, bool], latents_CT: Tensor) -> None:
        size = latents_CT.numel() * latents_CT.element_size()
        if self._remembered_bytes + size <= REMEMBERED_BYTES:
            self._remembered[key] = latents_CT
            self._remembered_bytes += size
