"""The length that a dataset's clips are cropped or padded to, and their manifest rows. Light: standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.ingest.captions.prompts import Prompt
from stages.ingest.stage import IngestParams, prepared_path
from stages.records import Clip

if TYPE_CHECKING:
    from stages.ingest.prepare_clip import PreparedClip


@dataclass(frozen=True, kw_only=True)
class Window:
    """Length that clips are cropped or padded to when they are read."""

    num_samples: int
    num_frames: int
    """Latent frames that cover `num_samples`."""


def dataset_window(lengths: Iterable[int], params: IngestParams) -> Window:
    """The duration asked for, else the longest clip; at most the model's native length, at least one latent frame.

    Args:
        lengths: samples of every whole recording; at least one.
    """
    seconds = params.duration_seconds
    wanted = max(lengths) if seconds is None else round(seconds * params.sample_rate_hz)
    num_samples = max(params.downsampling_ratio, min(wanted, params.native_samples))
    return Window(num_samples=num_samples, num_frames=math.ceil(num_samples / params.downsampling_ratio))


def manifest_row(clip_id: str, prompt: Prompt, prepared: PreparedClip, window: Window, params: IngestParams) -> Clip:
    """A clip's row of the manifest. The clip is stored whole; the row says how much the window crops or pads."""
    number = prepared.crop_start // params.native_samples + 1
    return Clip(
        clip_id=clip_id if number == 1 else f"{clip_id}#{number}",
        audio=prepared_path(prepared.digest, params, prepared.crop_start),
        digest=prepared.digest,
        num_samples=prepared.num_samples,
        source_sample_rate_hz=prepared.source_sample_rate_hz,
        num_channels=prepared.num_channels,
        crop_start=prepared.crop_start,
        num_samples_cut=max(0, prepared.num_samples - window.num_samples),
        num_samples_padded=max(0, window.num_samples - prepared.num_samples),
        seconds_total=math.ceil(prepared.num_samples_whole / params.sample_rate_hz),
        prompt=prompt.text,
        caption_source=prompt.source,
    )
