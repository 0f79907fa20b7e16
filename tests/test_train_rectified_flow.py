"""Rectified flow: noised latents, velocity and masked losses, with their gradients."""

from __future__ import annotations

import pytest
import torch

from stages.train.model.rectified_flow import losses, noised, velocity


def example(batch=2, channels=3, frames=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, batch, channels, frames, generator=generator).unbind()


def mask(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_timestep_zero_is_the_clip_and_one_is_the_noise():
    latents, noise, _ = example()
    x_t = noised(latents, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(x_t[0], latents[0])
    assert torch.equal(x_t[1], noise[1])


def test_the_velocity_leads_from_the_clip_to_the_noise():
    latents, noise, _ = example()
    t = torch.tensor([0.25, 0.75])
    x_t = noised(latents, noise, t)
    torch.testing.assert_close(x_t + (1 - t)[:, None, None] * velocity(latents, noise), noise)


def test_a_loss_is_the_mean_square_over_channels_and_the_frames_of_its_part():
    latents, noise, predicted = example()
    target = velocity(latents, noise)
    # A frame of padding belongs to neither part, whatever the masks say of it.
    parts = losses(predicted, target, mask([1, 1, 1, 0], [1, 1, 1, 1]), mask([1, 0, 0, 1], [1, 1, 0, 0]))
    error = (predicted - target).square()
    torch.testing.assert_close(parts.generated_B, torch.stack([error[0, :, 1:3].mean(), error[1, :, 2:].mean()]))
    torch.testing.assert_close(parts.context_B, torch.stack([error[0, :, :1].mean(), error[1, :, :2].mean()]))


def test_a_short_clip_weighs_as_much_as_a_long_one():
    predicted, target = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    predicted[0, :, 0] = 2.0
    predicted[1] = 1.0
    parts = losses(predicted, target, mask([1, 0, 0, 0], [1, 1, 1, 1]), torch.zeros(2, 4, dtype=torch.bool))
    assert parts.total(1.0).item() == (4.0 + 1.0) / 2


def test_a_clip_with_an_empty_part_counts_as_zero_there_and_weighs_all_the_same():
    predicted, target = torch.ones(2, 3, 4), torch.zeros(2, 3, 4)
    nothing, everything = torch.zeros(2, 4, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    parts = losses(predicted, target, everything, mask([1, 1, 1, 1], [0, 0, 0, 0]))
    assert parts.generated_B.tolist() == [0.0, 1.0]
    assert parts.context_B.tolist() == [1.0, 0.0]
    assert losses(predicted, target, everything, nothing).context_B.tolist() == [0.0, 0.0]


def test_the_context_part_counts_by_its_weight():
    latents, noise, predicted = example()
    parts = losses(predicted, velocity(latents, noise), torch.ones(2, 4) > 0, mask([1, 0, 0, 0], [1, 1, 0, 0]))
    expected = (parts.generated_B + 0.5 * parts.context_B).mean()
    torch.testing.assert_close(parts.total(0.5), expected)
    assert parts.total(0.0) == parts.generated_B.mean()


def test_values_at_padding_have_no_part_in_loss_or_gradient():
    latents, noise, predicted = example(batch=1)
    real = mask([1, 1, 0, 0])
    spoiled = predicted.clone()
    spoiled[:, :, 2:] = float("nan")
    spoiled.requires_grad_()
    total = losses(spoiled, velocity(latents, noise), real, torch.zeros_like(real)).total(1.0)
    total.backward()
    expected = losses(predicted, velocity(latents, noise), real, torch.zeros_like(real)).total(1.0)
    assert torch.equal(total, expected)
    assert spoiled.grad.isfinite().all()
    assert not spoiled.grad[:, :, 2:].any()


def test_the_loss_of_a_half_precision_prediction_is_fp32():
    latents, noise, predicted = example()
    real = torch.ones(2, 4, dtype=torch.bool)
    parts = losses(predicted.half() * 300, velocity(latents, noise), real, ~real)
    assert parts.generated_B.dtype is torch.float32
    assert parts.generated_B.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_losses_is_that_of_the_formula_to_the_bit(dtype):
    latents, noise, predicted = example()
    wanted, given = velocity(latents, noise), mask([1, 0, 0, 1], [1, 1, 0, 0])
    real = mask([1, 1, 1, 0], [1, 1, 1, 1])
    ours, theirs = (predicted.to(dtype).requires_grad_() for _ in range(2))
    losses(ours, wanted, real, given).total(0.5).backward()

    error = torch.where(real[:, None], theirs.float() - wanted, 0.0).square().sum(dim=1)
    generated, context = ((error * part).sum(dim=1) / (3 * part.sum(dim=1)) for part in (real & ~given, real & given))
    (generated + 0.5 * context).mean().backward()
    assert torch.equal(ours.grad, theirs.grad)
