"""The made-up style of the examples: what makes it one is in every clip."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.example_style import NAME, RESONANCE_HZ, RHYTHMS, TREMOLO_HZ, StyleClip, style_clips
from stages.pretrain.captions.nouns import FAMILY_NOUNS, VARIANT_NOUNS

RATE_HZ = 22_050
CLIP = StyleClip(root=45, beats_per_minute=100, rhythm="tresillo", seed=3)


def audio(clip: StyleClip = CLIP, seconds: float = 3.0) -> np.ndarray:
    return clip.synth(None, seconds, RATE_HZ)


def test_the_same_clip_has_the_same_samples():
    assert np.array_equal(audio(), audio())


def test_a_clip_is_stereo_finite_and_as_long_as_asked():
    assert audio().shape == (3 * RATE_HZ, 2)
    assert np.isfinite(audio()).all() and np.abs(audio()).max() > 0.1


@pytest.mark.parametrize("root", [40, 52, 64])
def test_the_resonance_outweighs_all_that_lies_above_it_whatever_the_note(root):
    middle_X = audio(StyleClip(root=root, beats_per_minute=100, rhythm="tresillo", seed=3)).sum(axis=1)
    power_F, frequency_F = np.abs(np.fft.rfft(middle_X)) ** 2, np.fft.rfftfreq(len(middle_X), 1 / RATE_HZ)
    near = power_F[np.abs(frequency_F - RESONANCE_HZ) < 250].sum()
    assert near > 10 * power_F[frequency_F > 1.5 * RESONANCE_HZ].sum()


def test_the_level_swings_with_the_tremolo():
    level_X = np.abs(audio(seconds=4.0).sum(axis=1))
    swing_F = np.abs(np.fft.rfft(level_X - level_X.mean()))
    frequency_F = np.fft.rfftfreq(len(level_X), 1 / RATE_HZ)
    slow = (frequency_F > 4.5) & (frequency_F < 20)
    assert abs(frequency_F[slow][swing_F[slow].argmax()] - TREMOLO_HZ) < 0.6


def test_captions_name_the_style_and_plain_ones_do_not():
    assert CLIP.caption == "zarnel pluck, A minor, 100 bpm"
    assert CLIP.plain_caption == "pluck, A minor, 100 bpm"


def test_the_name_is_no_word_of_the_base_model():
    words = " ".join(name for names in (*FAMILY_NOUNS.values(), *VARIANT_NOUNS.values()) for name in names)
    assert NAME not in words


def test_another_seed_gives_held_out_clips():
    assert not set(style_clips(20)) & set(style_clips(20, seed=1))


def test_rhythms_are_whole_beats():
    assert [name for name, steps in RHYTHMS.items() if len(steps) % 8 or steps[0] != "x"] == []


def test_a_very_short_clip_can_be_made():
    assert audio(seconds=0.01).shape == (round(0.01 * RATE_HZ), 2)
