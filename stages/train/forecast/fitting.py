"""What fits a machine before there is any data: for each model the longest clips that its memory allows."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace

import torch

from stages import catalogue
from stages.models.device import usable_dtype
from stages.records import ModelSpec
from stages.train.forecast.estimate import TrainingSetup
from stages.train.forecast.network_size import BatchSize
from stages.train.forecast.remedies import fits
from stages.train.stage import TrainParams


@dataclass(frozen=True)
class Fitting:
    """What a training with the default settings, one clip a step and cached latents allows."""

    seconds: float
    """Longest clips that fit; 0 where none do."""
    checkpointed_seconds: float
    """The same where blocks are recomputed in the backward pass, which takes longer."""
    kinds: tuple[str, ...]
    """Adapter kinds that fit with the longest of these clips."""


def fitting(spec: ModelSpec, device: torch.device, free_bytes: int) -> Fitting:
    """What fits into so much memory."""
    setup = TrainingSetup(
        config=catalogue.family_of(spec.name).model_config(spec.name),
        params=TrainParams(model=spec.name, pre_encode=True),
        batch=BatchSize(num_clips=1, num_frames=1),
        dtype=usable_dtype(torch.bfloat16, device, lambda line: None),
        device=device,
    )
    checkpointed = replace(setup, checkpointing=True)
    plain_frames, most_frames = (_longest(one, spec, free_bytes) for one in (setup, checkpointed))
    tightest = checkpointed if most_frames > plain_frames else setup
    longest = replace(tightest, batch=BatchSize(num_clips=1, num_frames=max(most_frames, plain_frames, 1)))
    kinds = [
        kind
        for kind in catalogue.adapter_kinds()
        if fits(replace(longest, params=replace(longest.params, adapter_type=kind)), free_bytes)
    ]
    return Fitting(_seconds(plain_frames, spec), _seconds(max(most_frames, plain_frames), spec), tuple(kinds))


def _seconds(num_frames: int, spec: ModelSpec) -> float:
    return min(num_frames * spec.downsampling_ratio / spec.sample_rate_hz, spec.max_seconds)


def _longest(setup: TrainingSetup, spec: ModelSpec, free_bytes: int) -> int:
    """Most latent frames of a clip that fit, up to the model's native length."""
    lengths = range(1, spec.num_frames(spec.native_samples) + 1)

    def too_long(num_frames: int) -> bool:
        return not fits(replace(setup, batch=BatchSize(num_clips=1, num_frames=num_frames)), free_bytes)

    return bisect_right(lengths, False, key=too_long)
