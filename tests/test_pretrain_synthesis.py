"""Sounds for the shipped model: each sounds as its facts say."""

from __future__ import annotations

import pytest
import torch

from stages.pretrain.synthesis.families import harmony, keys_and_synths
from stages.pretrain.synthesis.signal.context import SAMPLE_RATE_HZ
from stages.pretrain.synthesis.signal.oscillators import hz, moving_phase, partials, sine
from stages.pretrain.synthesis.signal.placement import panned
from stages.pretrain.synthesis.synthesiser import FAMILIES, SynthBatch, Synthesiser

PITCHED = ("pluck", "bowed string", "bell", "mallet", "bass", "lead", "vowel", "wind instrument")


def rendered(family: str, seconds: float = 1.0, clips: int = 2, seed: int = 3) -> SynthBatch:
    return Synthesiser(seed=seed).batch(clips, round(seconds * SAMPLE_RATE_HZ), [family])


def spectrum(audio_X: torch.Tensor) -> torch.Tensor:
    """Magnitudes at every half hertz."""
    return torch.fft.rfft(audio_X, n=2 * SAMPLE_RATE_HZ).abs()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_finite_and_heard(family):
    batch = rendered(family)
    assert torch.isfinite(batch.audio_BAX).all()
    loudest_B = batch.audio_BAX.abs().amax(dim=(1, 2))
    assert loudest_B.tolist() == pytest.approx([facts.peak for facts in batch.facts], rel=1e-3)
    assert all(0.099 <= peak <= 0.901 for peak in loudest_B.tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_sound_is_silent_from_its_end_on(family):
    batch = rendered(family, seconds=1.5)
    for audio_AX, facts in zip(batch.audio_BAX, batch.facts, strict=True):
        tail_AX = audio_AX[:, round(facts.seconds * SAMPLE_RATE_HZ) + 1 :]
        assert not tail_AX.any()


@pytest.mark.parametrize("family", PITCHED)
def test_the_fundamental_is_where_the_note_says(family):
    """Of all notes within three semitones, that of the facts has the strongest harmonics."""
    for audio_AX, facts in zip(*_pair(rendered(family, seconds=2.0)), strict=True):
        magnitude_F = spectrum(audio_AX.sum(dim=0))
        assert facts.note is not None
        heard = {shift: _strength(magnitude_F, facts.note + shift, family) for shift in range(-3, 4)}
        assert max(heard, key=heard.__getitem__) == 0, (facts, heard)


def _pair(batch: SynthBatch):
    return batch.audio_BAX, batch.facts


def _strength(magnitude_F: torch.Tensor, note: int, family: str) -> float:
    """Magnitude near the fundamental and, where partials are harmonic, the two above it."""
    fundamental = float(hz(torch.tensor(float(note))))
    count = 1 if family in ("bell", "mallet") else 3
    spans = [(2 * k * fundamental * 0.985, 2 * k * fundamental * 1.015) for k in range(1, count + 1)]
    return sum(float(magnitude_F[int(low) : int(high) + 2].max()) for low, high in spans)


WITHOUT_BRIGHTNESS = ("drum loop", "noise", "wind", "rain", "fire", "waves", "sweep")
BRIGHT_OR_DARK = [
    name for name in FAMILIES if name not in ("drum loop", "noise", "wind", "rain", "fire", "waves", "sweep")
]


@pytest.mark.parametrize("family", BRIGHT_OR_DARK)
def test_bright_sounds_have_more_highs_than_dark_ones(family):
    """Of sounds of all kinds and notes, so on average only."""
    batch = rendered(family, seconds=0.3, clips=40)
    power_BF = torch.fft.rfft(batch.audio_BAX).abs().square().sum(dim=1)
    centroid_B = (power_BF * torch.arange(power_BF.shape[1])).sum(dim=1) / power_BF.sum(dim=1)
    octaves_B = centroid_B.log2() - torch.tensor([(facts.note or 0) / 12 for facts in batch.facts])
    brightness_B = torch.tensor([facts.brightness or 0.0 for facts in batch.facts])
    assert octaves_B[brightness_B > 0.6].mean() > octaves_B[brightness_B < 0.4].mean() + 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_no_sound_begins_with_a_click(family):
    batch = rendered(family, seconds=0.5)
    assert float(batch.audio_BAX[:, :, 0].abs().max()) < 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_no_sound_ends_with_a_click(family):
    batch = rendered(family, seconds=1.5)
    for audio_AX, facts in zip(*_pair(batch), strict=True):
        end = round(facts.seconds * SAMPLE_RATE_HZ)
        assert float(audio_AX[:, end - 20 : end + 20].abs().max()) < 0.01


def test_the_same_seed_gives_the_same_bytes():
    first, again = (Synthesiser(seed=5).batch(6, 11_025) for _ in range(2))
    assert torch.equal(first.audio_BAX, again.audio_BAX)
    assert first.facts == again.facts


def test_another_seed_gives_other_sounds():
    assert Synthesiser(seed=5).batch(3, 4096).facts != Synthesiser(seed=6).batch(3, 4096).facts


def test_a_second_batch_differs_from_the_first():
    synthesiser = Synthesiser(seed=5)
    assert synthesiser.batch(3, 4096).facts != synthesiser.batch(3, 4096).facts


def test_a_fifth_of_the_sounds_are_drum_loops():
    total = sum(family.share for family in FAMILIES.values())
    assert 0.18 < FAMILIES["drum loop"].share / total < 0.22


def test_hits_of_a_loop_fall_on_sixteenths_of_its_tempo():
    batch = Synthesiser(seed=4).batch(4, 4 * SAMPLE_RATE_HZ, ["drum loop"])
    for audio_AX, facts in zip(*_pair(batch), strict=True):
        block_T = audio_AX.square().sum(dim=0)[: 4 * SAMPLE_RATE_HZ // 441 * 441].view(-1, 441).sum(dim=1)
        rise_T = (block_T.add(1e-6).log().diff()).clamp_min(0)
        assert facts.tempo_bpm is not None
        beat = 6000 / facts.tempo_bpm  # blocks of 10 ms
        heard = {ratio: _comb(rise_T, beat * ratio) for ratio in (0.83, 0.9, 1.0, 1.1, 1.21)}
        assert max(heard, key=heard.__getitem__) == 1.0, (facts, heard)


def _comb(rise_T: torch.Tensor, beat: float) -> float:
    """Mean rise in level around multiples of a beat."""
    at = [round(n * beat) for n in range(1, int((len(rise_T) - 3) / beat))]
    return sum(float(rise_T[max(place - 2, 0) : place + 2].max()) for place in at) / len(at)


def test_a_wide_sound_has_as_much_side_as_middle():
    sounds = Synthesiser(seed=9).batch(24, 22_050, ["noise"])
    for audio_AX, facts in zip(*_pair(sounds), strict=True):
        left_X, right_X = audio_AX
        correlation = float((left_X * right_X).sum() / (left_X.norm() * right_X.norm()).clamp_min(1e-9))
        if facts.width > 0.9 and not facts.room_seconds:
            assert abs(correlation) < 0.35
        if facts.width == 0 and not facts.room_seconds:
            assert correlation > 0.999


def test_a_sound_at_the_far_left_leaves_the_right_channel_silent():
    left_X, right_X = panned(torch.ones(1, 2, 8), torch.tensor([[-1.0]]))[0]
    assert float(left_X.min()) > 1 and float(right_X.abs().max()) < 1e-6


def test_a_sound_on_one_side_is_louder_there():
    for audio_AX, facts in zip(*_pair(Synthesiser(seed=9).batch(24, 11_025)), strict=True):
        left, right = audio_AX.square().sum(dim=1).tolist()
        if abs(facts.pan) > 0.3:
            assert (right > left) == (facts.pan > 0)


@pytest.mark.parametrize("family", ["chord", "pad", "arpeggio"])
def test_the_tones_of_the_mode_on_the_key_are_the_strongest(family):
    intervals = harmony.MODES | dict(zip(keys_and_synths.PAD_MODES, keys_and_synths._PAD_INTERVALS, strict=True))
    for audio_AX, facts in zip(*_pair(rendered(family, seconds=4.0, clips=4)), strict=True):
        chroma = _chroma(audio_AX.sum(dim=0))
        assert facts.key is not None and facts.mode is not None
        tones = {(facts.key + interval) % 12 for interval in intervals[facts.mode]}
        assert set(sorted(range(12), key=chroma.__getitem__)[-len(tones) :]) == tones, (facts, chroma)


def _chroma(audio_X: torch.Tensor) -> list[float]:
    """Strongest magnitude of each of the twelve tones between the notes 40 and 75."""
    magnitude_F = spectrum(audio_X)
    found = [0.0] * 12
    for note in range(40, 76):
        centre = 2 * float(hz(torch.tensor(float(note))))
        near = magnitude_F[round(centre * 0.992) : round(centre * 1.008) + 1]
        found[note % 12] = max(found[note % 12], float(near.max()))
    return found


def test_partials_above_the_audible_range_are_left_out():
    time_X = torch.arange(4096) / SAMPLE_RATE_HZ
    assert not partials(torch.tensor([[30_000.0]]), torch.ones(1, 1), None, time_X).any()


def test_phases_stay_exact_in_long_sounds():
    phase_BX = moving_phase(torch.full((1, 8 * SAMPLE_RATE_HZ), 1000.0))
    # 1000 Hz repeats every 441 samples; rounding the step to 2**-32 of a turn drifts by less than 1e-3 in 8 s.
    assert float((sine(phase_BX[:, -441:]) - sine(phase_BX[:, 0:441])).abs().max()) < 1e-3
