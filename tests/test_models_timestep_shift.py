"""Timestep shifts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import UnsupportedModelConfig
from stages.models.nets.dit.timestep_shift import shifted

KINDS = [
    {"type": "full", "min_length": 256, "max_length": 4096},
    {"type": "full", "use_sine": True},
    {"type": "flux"},
    {"type": "logsnr", "rate": 1.0},
    {"type": "logsnr"},
    {"type": "none"},
    None,
]


@pytest.mark.parametrize("options", KINDS, ids=str)
@given(num_frames=st.integers(8, 10_000))
@settings(max_examples=20, deadline=None)
def test_every_shift_keeps_the_ends_and_the_order(options, num_frames):
    # The length-dependent log-SNR shift turns around below 7 frames, where its two ends meet.
    timestep = torch.linspace(0, 1, 101)
    moved = shifted(timestep, torch.tensor([num_frames]), options)
    assert moved[0] == 0
    assert moved[-1] == pytest.approx(1, abs=1e-6)
    assert (moved.diff() > -1e-6).all()


def test_the_full_shift_multiplies_the_odds_by_e_to_the_mu_of_the_length():
    timestep = torch.full((3,), 0.5)
    moved = shifted(timestep, torch.tensor([100, 256, 4096]), {})
    odds = moved / (1 - moved)
    torch.testing.assert_close(odds, torch.tensor([math.exp(0.5), math.exp(0.5), math.exp(1.15)]))


def test_longer_clips_are_shifted_further_towards_noise():
    moved = shifted(torch.full((3,), 0.5), torch.tensor([256, 1024, 4096]), {"type": "flux"})
    assert moved[0] == 0.5
    assert (moved.diff() > 0).all()


def test_the_default_sampling_shift_has_the_published_values():
    moved = shifted(torch.tensor([1.0, 0.875, 0.75]), torch.tensor([98]), {"type": "logsnr"})
    torch.testing.assert_close(moved, torch.tensor([1.0, 0.99438, 0.98448]), atol=5e-6, rtol=0)


def test_no_options_leave_the_timestep_alone():
    timestep = torch.rand(5)
    assert torch.equal(shifted(timestep, torch.ones(5), None), timestep)


@pytest.mark.parametrize(
    ("options", "named"), [({"type": "cosine"}, "cosine"), ({"type": "flux", "max_shift": 2}, "max_shift")]
)
def test_an_unknown_shift_or_setting_is_refused(options, named):
    with pytest.raises(UnsupportedModelConfig, match=named):
        shifted(torch.rand(2), torch.ones(2), options)
