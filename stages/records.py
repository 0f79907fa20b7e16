"""Rows that travel between stages, and the plain facts about models and adapters. Light: standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One audio with one prompt, prepared by ingest. Times are samples at the model's rate unless named otherwise."""

    clip_id: str
    """Path inside the dataset without its suffix; with `#2` and so on for further windows of a long recording."""
    audio: str
    """The prepared file, relative to the store's shared folder: `prepared/ab/<key>.flac`."""
    digest: str
    """`sha256:...` of the source bytes."""
    num_samples: int
    """Samples kept (at most the model's native length)."""
    source_sample_rate_hz: int
    num_channels: int
    """Channels of the source file."""
    crop_start: int
    """First kept sample of the whole recording; 0 unless a long recording was split."""
    num_samples_cut: int
    """How many of `num_samples` the window leaves out."""
    num_samples_padded: int
    """How many samples of silence the window adds behind the clip."""
    seconds_total: int
    """ceil of the whole recording's length in seconds, not of the crop."""
    prompt: str
    caption_source: str
    """The member the caption came from."""


@dataclass(frozen=True, kw_only=True)
class EncodedClip:
    """Where one clip's latents and prompt embedding lie."""

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


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """Where one prompt's hidden states lie."""

    prompt_key: str
    prompt: str
    shard: str
    row: int
    num_tokens: int
    checksum: str


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A base model by name: what can be known without opening its files."""

    name: str
    inference_model: str
    """The few-step sibling its adapters are used with."""
    repo: str | None
    """Hub repository; None for a model that ships with the project."""
    sample_rate_hz: int
    downsampling_ratio: int
    latent_channels: int
    max_samples: int
    """`sample_size` of the published config."""
    max_seconds: int
    """Native length of the product: longer clips are cropped to it."""

    @property
    def native_samples(self) -> int:
        """Samples of the native length."""
        return self.max_seconds * self.sample_rate_hz

    def num_frames(self, num_samples: int) -> int:
        """Latent frames that cover `num_samples`."""
        return math.ceil(num_samples / self.downsampling_ratio)


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """What an adapter is, apart from its values."""

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
