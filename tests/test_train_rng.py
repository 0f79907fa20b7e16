"""Random draws: reproducible by seed, purpose and step, with the right distributions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.train.dataset.timesteps import effective_frames, timesteps, truncated_logistic_normal
from stages.train.rng import StepRng, bernoulli, crop_start, silence_extensions, standard_normal

RECORDED = json.loads((Path(__file__).parent / "golden" / "tiny-s" / "statistics.json").read_text("utf-8"))
STEPS = st.integers(0, 20_000)


def kolmogorov_smirnov(sample, distribution):
    """Largest distance between a sample's distribution and a law's."""
    ordered = np.sort(sample)
    law = distribution(ordered)
    above = np.arange(1, len(ordered) + 1) / len(ordered)
    return max((above - law).max(), (law - (above - 1 / len(ordered))).max())


def phi(x):
    return torch.special.ndtr(torch.as_tensor(x, dtype=torch.float64)).numpy()


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31 - 1), step=STEPS)
def test_a_step_drawn_again_alone_is_the_same(seed, step):
    in_order = [StepRng(seed).generator("noise", s).standard_normal(4) for s in (step, step + 1)]
    alone = StepRng(seed).generator("noise", step + 1).standard_normal(4)
    assert np.array_equal(in_order[1], alone)
    assert not np.array_equal(in_order[0], alone)


def test_each_seed_purpose_and_step_has_its_own_stream():
    streams = {
        StepRng(seed).generator(purpose, step).bytes(16)
        for seed in (1, 11)
        for purpose in ("noise", "mask", "mask/1")
        for step in (0, 1, 11)
    }
    assert len(streams) == 2 * 3 * 3


def test_the_numbers_of_a_step_do_not_change_with_the_release():
    # A changed stream would change every adapter trained with a given seed: bump the stage's version then.
    drawn = StepRng(42).generator("noise", 0).standard_normal(3, dtype=np.float32)
    np.testing.assert_allclose(drawn, [0.5942025, 1.0214254, -1.4382448], rtol=1e-6)


def test_torch_generators_are_seeded_the_same_way():
    first, again, other = (StepRng(7).torch_generator("adapter", step) for step in (3, 3, 4))
    assert torch.equal(torch.randn(5, generator=first), torch.randn(5, generator=again))
    assert first.initial_seed() != other.initial_seed()


def test_noise_is_unit_normal():
    sample = standard_normal(StepRng(0).generator("noise", 0), 4, 16, 512).double().flatten().numpy()
    assert kolmogorov_smirnov(sample, phi) < 1.95 / math.sqrt(len(sample))


def test_timesteps_follow_the_truncated_logistic_normal():
    draws = 1.0 - timesteps(StepRng(0).generator("timestep", 0), 20_000, 0.075).double().numpy()

    def law(r):
        y = 0.075 + 0.925 * np.clip(r, 0, 1)
        low = phi(math.log(0.075 / 0.925))
        return (phi(np.log(y / (1 - y))) - low) / (1 - low)

    assert kolmogorov_smirnov(draws, law) < 1.95 / math.sqrt(len(draws))


def test_timesteps_have_the_recorded_quantiles():
    recorded = RECORDED["truncated_logistic_normal"]
    levels = torch.tensor(recorded["quantile_levels"], dtype=torch.float64)
    ours = truncated_logistic_normal(torch.special.ndtri(levels).numpy())
    np.testing.assert_allclose(ours, recorded["analytic_quantiles"], atol=1e-7)


def test_the_largest_normal_still_gives_a_timestep():
    draws = truncated_logistic_normal(np.array([-40.0, -8.0, 8.0, 40.0]))
    assert ((draws >= 0) & (draws <= 1)).all()
    assert np.isfinite(draws).all()


def test_another_truncation_gives_another_distribution():
    normals_ = np.linspace(-2, 2, 9)
    assert not np.allclose(truncated_logistic_normal(normals_, 0.075), truncated_logistic_normal(normals_, 0.3))


def test_extensions_into_silence_are_floors_of_an_exponential():
    mean = RECORDED["silence_extension"]["scale_tokens"]
    drawn = silence_extensions(StepRng(0).generator("silence", 0), 40_000, mean)
    # P(floor(X) <= n) = 1 - exp(-(n + 1) / mean), compared at every whole number.
    counts = np.arange(400)
    ours = (drawn[:, None] <= counts).mean(axis=0)
    assert np.abs(ours - (1 - np.exp(-(counts + 1) / mean))).max() < 1.95 / math.sqrt(len(drawn))


def test_no_extension_is_drawn_when_its_mean_is_zero():
    assert not silence_extensions(StepRng(0).generator("silence", 0), 100, 0.0).any()


@settings(deadline=None, max_examples=100)
@given(size=st.integers(1, 5000), window=st.integers(1, 5000), step=STEPS)
def test_a_crop_lies_inside_its_clip(size, window, step):
    start = crop_start(StepRng(1).generator("crop", step), size, window)
    assert start == 0 if size <= window else 0 <= start <= size - window


def test_a_crop_may_start_at_either_end():
    starts = {crop_start(StepRng(1).generator("crop", step), 12, 10) for step in range(100)}
    assert starts == {0, 1, 2}


def test_bernoulli_draws_are_true_as_often_as_asked():
    assert abs(bernoulli(StepRng(0).generator("prompt dropout", 0), 20_000, 0.1).mean() - 0.1) < 5 * 0.3 / math.sqrt(
        20_000
    )
    assert not bernoulli(StepRng(0).generator("prompt dropout", 0), 1000, 0.0).any()
    assert bernoulli(StepRng(0).generator("prompt dropout", 0), 1000, 1.0).all()


def test_the_effective_length_rounds_samples_down_and_frames_up():
    assert [effective_frames(seconds, 44_100, 4096) for seconds in (12, 47, 190)] == [130, 507, 2046]
    assert effective_frames(4096 / 44_100 + 1e-9, 44_100, 4096) == 1
