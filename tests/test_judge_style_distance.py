"""The distance of clips to a style: near 0 for the style itself, large for what lacks any part of it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from pipeline import example_style
from pipeline.example_style import StyleClip, style_clips
from stages.judge.style_distance import (
    WAYS,
    chance_distances,
    clip_vectors,
    energy_distance,
    remoteness,
    style_distances,
)

RATE_HZ, SECONDS, CLIPS = 44_100, 2.0, 6


def sound(clip: StyleClip) -> torch.Tensor:
    audio_XA = clip.synth(None, SECONDS, RATE_HZ)
    return torch.from_numpy((0.7 * audio_XA / np.abs(audio_XA).max()).T).float()


@cache
def style(seed: int) -> torch.Tensor:
    return torch.stack([sound(clip) for clip in style_clips(CLIPS, seed)])


@cache
def without(part: str) -> torch.Tensor:
    """Plucks in the same rhythms without the tremolo, without the resonance, or without both."""
    with pytest.MonkeyPatch.context() as changed:
        if part in ("tremolo", "both"):
            changed.setattr(example_style, "TREMOLO_DEPTH", 0.0)
        if part in ("resonance", "both"):
            changed.setattr(example_style, "_resonant", lambda audio_XA, rate_hz: audio_XA)
        return torch.stack([sound(clip) for clip in style_clips(CLIPS, seed=2)])


@cache
def vectors(clips: int | str) -> dict[str, torch.Tensor]:
    return clip_vectors(style(clips) if isinstance(clips, int) else without(clips))


@cache
def distance(way: str, lacking: str | None = None) -> float:
    """From held-out clips of the style to others of it, or to clips that lack a part of it."""
    return style_distances(style(0) if lacking is None else without(lacking), style(1))[way]


@pytest.mark.parametrize("way", WAYS)
def test_other_clips_of_the_style_are_much_nearer_than_the_same_plucks_without_it(way):
    assert distance(way) < 0.3 * distance(way, "both")


@pytest.mark.parametrize("part", ["tremolo", "resonance"])
@pytest.mark.parametrize("way", WAYS)
def test_what_lacks_one_part_of_the_style_is_further_than_the_style(way, part):
    held_out = vectors(1)
    lacking, whole = (energy_distance(clips[way], held_out[way]) for clips in (vectors(part), vectors(0)))
    assert lacking > 0.1 + max(whole, 0)


@pytest.mark.parametrize("way", WAYS)
def test_neither_order_nor_level_nor_side_of_the_clips_matters(way):
    changed = 0.2 * without("both").flip(0, 1)
    assert style_distances(changed, style(1))[way] == pytest.approx(distance(way, "both"), rel=1e-4)


def test_two_halves_of_one_set_are_nearer_than_chance_three_times():
    chance = chance_distances(torch.cat([style(0), style(1)]), splits=5)
    assert all(distance(way) < 3 * chance[way] for way in WAYS)


def test_the_energy_distance_is_0_in_the_mean_between_samples_of_one_distribution():
    draw = torch.Generator().manual_seed(0)
    found = [energy_distance(*torch.randn(2, 6, 20, generator=draw)) for _ in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 20


def test_the_energy_distance_grows_with_the_shift():
    draw = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 50, 20, generator=draw)
    assert energy_distance(one, other) < energy_distance(one, other + 0.5) < energy_distance(one, other + 1)


@pytest.mark.parametrize("way", WAYS)
def test_a_clip_of_the_style_is_as_far_from_it_as_its_clips_from_each_other(way):
    assert remoteness(style(0), style(1))[way] == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("way", WAYS)
def test_one_clip_alone_is_told_to_be_far_from_the_style(way):
    assert remoteness(without("both")[:1], style(1))[way] > 1.2


def test_silence_has_a_distance():
    assert all(np.isfinite(value) for value in style_distances(torch.zeros(2, 2, 44_100), style(1)).values())


def test_the_clips_of_one_call_do_not_change_those_of_the_next():
    first = style_distances(style(0)[:2], style(1)[:2])
    style_distances(style(0)[2:4], style(1)[:2])
    assert style_distances(style(0)[:2], style(1)[:2]) == first
