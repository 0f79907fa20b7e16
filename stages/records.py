"""Manifest rows of ingest and encode, model specs and adapter specs. Light: standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cache.location import Location


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A row of ingest's manifest: one audio with one prompt. Lengths are samples at the model's rate."""

    clip_id: str
    """Path inside the dataset without its suffix; with `#2` and so on for later windows of a long recording."""
    audio: str
    """The prepared file, relative to the store's shared folder: `prepared/ab/<key>.flac`."""
    digest: str
    """`sha256:...` of the source bytes."""
    num_samples: int
    """Samples kept, at most the model's native length."""
    source_sample_rate_hz: int
    num_channels: int
    """Channels of the source file."""
    crop_start: int
    """Position of the first kept sample in the whole recording; 0 unless a long recording was split."""
    num_samples_cut: int
    """Samples of `num_samples` that do not fit into the window."""
    num_samples_padded: int
    """Samples of silence that follow the clip in the window."""
    seconds_total: int
    """Length of the whole recording in seconds, rounded up; not that of the crop."""
    prompt: str
    caption_source: str
    """The member of the dataset that held the caption."""


@dataclass(frozen=True, kw_only=True)
class EncodedClip:
    """A row of encode's manifest: where a clip's latents and prompt embedding are stored."""

    clip_id: str
    item_key: str
    prompt_key: str
    shard: str
    """File name inside the store's `latents/` folder."""
    row: int
    num_frames: int
    num_valid_frames: int
    seconds_start: int
    seconds_total: int
    prompt: str
    checksum: str
    """crc32 of the latent bytes, eight hex digits."""

    @property
    def location(self) -> Location:
        """Where the latents are stored."""
        return Location(
            item_key=self.item_key, shard=self.shard, row=self.row, num_frames=self.num_frames, checksum=self.checksum
        )


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A row of encode's list of prompts: where the hidden states of a prompt are stored."""

    prompt_key: str
    prompt: str
    shard: str
    row: int
    num_tokens: int
    checksum: str

    @property
    def location(self) -> Location:
        """Where the hidden states are stored."""
        return Location(
            item_key=self.prompt_key, shard=self.shard, row=self.row, num_frames=self.num_tokens, checksum=self.checksum
        )


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A base model: what is known about it without opening its files."""

    name: str
    inference_model: str
    """The distilled few-step model that its adapters are used with."""
    repo: str | None
    """Hub repository; None for a model that is bundled with the project."""
    sample_rate_hz: int
    downsampling_ratio: int
    latent_channels: int
    max_samples: int
    """`sample_size` of the published config."""
    max_seconds: int
    """Native length: longer clips are cropped to it."""
    guidance: float | None = None
    """Scale of classifier-free guidance to generate with, where the published one does not suit the model."""
    short_name: str = ""
    """Name of the model in adapter files as other tools compare it."""

    @property
    def native_samples(self) -> int:
        """Samples of the native length."""
        return self.max_seconds * self.sample_rate_hz

    def num_frames(self, num_samples: int) -> int:
        """Latent frames that cover `num_samples`."""
        return math.ceil(num_samples / self.downsampling_ratio)


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """Everything about an adapter except its weights."""

    kind: str
    rank: int
    alpha: float
    dropout: float = 0.0
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None

    @property
    def scaling(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank
