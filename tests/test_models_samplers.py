"""Samplers, generation lengths and guidance, on velocities with known solutions."""

from __future__ import annotations

import pytest
import torch

from stages.models.nets.dit.conditioning import Conditioning
from stages.models.nets.dit.guidance import Guidance, adaptive_projected_guidance, guided_velocity
from stages.models.nets.dit.samplers import SAMPLERS, generation_frames, generation_mask, sampling_schedule
from stages.models.nets.dit.transformer import Denoiser
from tests.small_networks import config, denoiser_inputs, randomised

DATA = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))


def towards_data(x, timestep_B):
    """The exact velocity when all data is one point: noise - data, with the noise read off x."""
    return (x - DATA) / timestep_B[:, None, None]


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"rk4"}))
def test_a_sampler_reaches_the_data_when_the_velocity_is_exact(name):
    # Not rk4: its last slope is taken where this velocity has its pole.
    schedule = sampling_schedule(8, torch.tensor([98, 98]))
    torch.testing.assert_close(SAMPLERS[name](towards_data, NOISE, schedule), DATA, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("dpmpp", 2), ("rk4", 4)])
def test_a_sampler_converges_at_its_order(name, order):
    """dx/dt = x, from t = 1 to t = 1/2: halving the step divides the error by 2 to the order."""

    def error(num_steps):
        schedule = torch.linspace(1, 0.5, num_steps + 1).double()[None]
        out = SAMPLERS[name](lambda x, timestep: x, torch.ones(1, 1, 1).double(), schedule)
        return abs(out.item() - torch.tensor(-0.5).double().exp().item())

    assert error(16) / error(32) == pytest.approx(2**order, rel=0.25)


@pytest.mark.parametrize(("name", "calls"), [("euler", 5), ("dpmpp", 5), ("pingpong", 5), ("rk4", 20)])
def test_a_sampler_evaluates_the_velocity_the_expected_number_of_times_and_never_at_zero(name, calls):
    seen = []
    counted = lambda x, timestep: seen.append(timestep.min().item()) or towards_data(x, timestep)  # noqa: E731
    SAMPLERS[name](counted, NOISE, sampling_schedule(5, torch.tensor([9, 9])))
    assert len(seen) == calls
    assert min(seen) > 0


def test_a_schedule_starts_at_the_given_timestep_and_ends_at_zero():
    schedule = sampling_schedule(5, torch.tensor([10, 4000]), start=0.6)
    assert schedule.shape == (2, 6)
    assert schedule[:, 0].tolist() == pytest.approx([0.6, 0.6])
    assert schedule[:, -1].tolist() == [0, 0]


def test_a_batch_as_large_as_the_number_of_timesteps_keeps_one_row_per_item():
    schedule = sampling_schedule(4, torch.full((5,), 98))
    assert torch.equal(schedule, schedule[:1].expand(5, -1))


def test_thirty_seconds_become_388_frames_of_which_387_are_valid():
    assert generation_frames([30.0], 44_100, 4096, 5_324_800) == 388
    assert generation_mask([30.0], 388, 44_100, 4096).sum() == 387


def test_a_generation_never_exceeds_what_the_model_holds():
    assert generation_frames([400.0, 3.0], 44_100, 4096, 16_777_216) == 4096


def guided(scale, **options):
    velocity, other = torch.randn(2, 2, 4, 6, generator=torch.Generator().manual_seed(2))
    mask = torch.arange(6) < torch.tensor([[4], [6]])
    timestep = torch.tensor([0.7, 0.7])
    return (
        velocity,
        other,
        adaptive_projected_guidance(NOISE, timestep, velocity, other, Guidance(scale=scale, **options), mask),
        mask,
    )


def test_plain_guidance_extrapolates_from_the_unconditional_velocity():
    velocity, other, out, _ = guided(4.0, projection=0.0)
    torch.testing.assert_close(out, other + 4 * (velocity - other), atol=1e-5, rtol=1e-5)


def test_projected_guidance_is_orthogonal_to_the_prediction_and_zero_in_padding():
    velocity, _, out, mask = guided(4.0)
    clean, moved = NOISE - 0.7 * velocity, NOISE - 0.7 * out
    along = ((moved - clean) * clean * mask[:, None]).sum(dim=(1, 2))
    torch.testing.assert_close(along, torch.zeros(2), atol=1e-4, rtol=0)
    padding = ~mask[:, None].expand(-1, 4, -1)
    torch.testing.assert_close(moved[padding], clean[padding], atol=1e-6, rtol=1e-5)
    assert (moved - clean).abs().max() > 0.1


def test_the_norm_threshold_bounds_the_guidance():
    velocity, _, out, mask = guided(2.0, projection=0.0, norm_threshold=0.5)
    step = (NOISE - 0.7 * out) - (NOISE - 0.7 * velocity)
    torch.testing.assert_close((step * mask[:, None]).norm(dim=(1, 2)), torch.full((2,), 0.5), atol=1e-4, rtol=0)


def test_full_rescaling_gives_back_the_conditional_deviation_over_channels():
    velocity, _, out, _ = guided(6.0, rescale=1.0)
    torch.testing.assert_close(out.std(dim=1), velocity.std(dim=1), atol=1e-4, rtol=1e-4)


def test_outside_its_interval_or_at_scale_one_guidance_changes_nothing():
    read = config()
    network, calls = randomised(Denoiser(read)), []
    network.register_forward_hook(lambda module, inputs, out: calls.append(len(out)))
    inputs = denoiser_inputs(read, 2, 6)
    x, timestep, made = inputs["noised_BCT"], torch.tensor([0.5, 0.5]), inputs["conditioning"]
    plain = network(x, timestep, made)
    for guidance in (Guidance(), Guidance(scale=4, interval=(0.6, 1.0))):
        assert torch.equal(guided_velocity(network, x, timestep, made, guidance), plain)
    assert calls == [2, 2, 2]


def test_guidance_runs_both_halves_in_one_batch_against_the_empty_or_the_negative_context():
    read = config()
    network, batches = randomised(Denoiser(read)), []
    network.register_forward_hook(lambda module, inputs, out: batches.append(len(out)))
    inputs = denoiser_inputs(read, 2, 6)
    x, timestep, made = inputs["noised_BCT"], torch.tensor([0.5, 0.5]), inputs["conditioning"]
    guidance = Guidance(scale=3, projection=0)
    negative = torch.randn_like(made.context_BSE)
    for context in (None, negative):
        empty = torch.zeros_like(negative) if context is None else context
        other = network(x, timestep, Conditioning(empty, made.global_BE))
        expected = other + 3 * (network(x, timestep, made) - other)
        out = guided_velocity(network, x, timestep, made, guidance, negative_context_BSE=context)
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    assert batches == [2, 2, 4] * 2


def test_a_guided_16_bit_network_answers_in_float32():
    read = config()
    network = randomised(Denoiser(read)).to(torch.bfloat16)
    inputs = denoiser_inputs(read, 1, 6)
    made, timestep = inputs["conditioning"], torch.tensor([0.5])
    assert guided_velocity(network, inputs["noised_BCT"], timestep, made, Guidance(scale=4)).dtype == torch.float32
