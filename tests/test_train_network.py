"""The trained network: dropped prompts, padding, pairing of noise, loss scale."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stages.adapters.attach import attach
from stages.models.load_weights import load_conditioner, load_denoiser
from stages.records import AdapterSpec
from stages.train.dataset.batch import Batch
from stages.train.model.network import Network, batch_losses, loss_scale
from tests.small_training import weights


def network(dtype=torch.float32, kind="lora"):
    """The golden tiny network with an adapter a little away from its initial values."""
    roots = load_denoiser(weights(), "cpu", dtype), load_conditioner(weights(), "cpu", dtype)
    spec = AdapterSpec(kind=kind, rank=2, alpha=2.0, include=("layers.0.",))
    adapter = attach(roots, spec, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.named_parameters().values():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return Network(*roots, adapter)


def batch(size=2, frames=12):
    generator = torch.Generator().manual_seed(2)
    return Batch(
        clip_ids=("clip",) * size,
        crop_starts=(0,) * size,
        latents_BCT=torch.randn(size, 16, frames, generator=generator),
        noise_BCT=torch.randn(size, 16, frames, generator=generator),
        timestep_B=torch.linspace(0.5, 0.75, size),
        real_BT=torch.ones(size, frames, dtype=torch.bool),
        given_BT=torch.zeros(size, frames, dtype=torch.bool),
        dropped_B=torch.zeros(size, dtype=torch.bool),
        seconds_total_B=torch.full((size,), 30.0),
        hidden=(torch.randn(5, 32, generator=generator),) * size,
        all_real=True,
    )


def test_a_batch_without_padding_needs_no_mask():
    plain, masked = batch(), replace(batch(), all_real=False)
    made = [network().velocity(one, one.noise_BCT) for one in (plain, masked)]
    torch.testing.assert_close(made[0], made[1], rtol=1e-5, atol=1e-5)


def test_padding_behind_a_clip_does_not_reach_it():
    alone = batch(size=1, frames=12)
    padded = batch(size=1, frames=20)
    for name in ("latents_BCT", "noise_BCT"):
        getattr(padded, name)[..., :12] = getattr(alone, name)
    padded = replace(padded, real_BT=torch.arange(20)[None] < 12, all_real=False, hidden=alone.hidden)
    losses = [batch_losses(network(), one, paired=False).total(1.0) for one in (alone, padded)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["dora-rows", "bora", "dora-rows-xs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_without_context_does_not_move_the_layers_that_see_it(kind, dtype):
    small = network(dtype, kind)
    batch_losses(small, batch(), paired=False).total(1.0).backward()
    moved = {key for key, one in small.adapter.named_parameters().items() if one.grad.count_nonzero() > 0}
    assert {key for key in moved if ".to_local_embed.0." in key} == set()
    assert {key for key in moved if ".to_local_embed.2." in key} != set()


def test_frames_to_generate_are_hidden_from_the_network_and_given_ones_are_not():
    first = replace(batch(), given_BT=torch.arange(12)[None].expand(2, -1) < 4, timestep_B=torch.ones(2))
    # At timestep 1 the noised input holds nothing of the clip: what is left of it is what is given.
    hidden, shown = first.latents_BCT.clone(), first.latents_BCT.clone()
    hidden[..., 4:] += 1.0
    shown[..., :4] += 1.0
    made = {
        name: network().velocity(replace(first, latents_BCT=latents), first.noise_BCT)
        for name, latents in (("as it was", first.latents_BCT), ("hidden", hidden), ("shown", shown))
    }
    assert torch.equal(made["as it was"], made["hidden"])
    assert not torch.allclose(made["as it was"], made["shown"])


def test_a_withheld_prompt_is_withheld_from_its_own_clip_only():
    told, mute = network(), replace(batch(), dropped_B=torch.tensor([False, True]))
    other = replace(mute, hidden=tuple(states + 1 for states in mute.hidden))
    before, after = (told.velocity(one, one.noise_BCT) for one in (mute, other))
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[0], after[0])


def gradient(dtype, scale, one):
    made = network(dtype)
    (batch_losses(made, one, paired=False).total(1.0) * scale).backward()
    return torch.cat([parameter.grad.flatten() / scale for parameter in made.adapter.named_parameters().values()])


def test_the_loss_scale_saves_the_gradients_that_fp16_would_lose_over_a_long_clip():
    # At timestep 0.5, which fp16 holds exactly: its rounding is not what is to be seen here.
    long = batch(size=1, frames=1500)
    exact = gradient(torch.float32, 1.0, long)
    errors = [
        ((gradient(torch.float16, scale, long) - exact).norm() / exact.norm()).item()
        for scale in (loss_scale(long, torch.float16), 1.0)
    ]
    assert 5 * errors[0] < errors[1]


@pytest.mark.parametrize(("size", "frames"), [(1, 1), (1, 108), (8, 4092)])
def test_the_loss_scale_is_a_power_of_two_from_the_batch_s_shape(size, frames):
    scale = loss_scale(replace(batch(), latents_BCT=torch.empty(size, 256, frames)), torch.float16)
    assert scale.is_integer()
    assert int(scale).bit_count() == 1
    assert scale <= size * frames < 2 * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_need_no_loss_scale(dtype):
    assert loss_scale(batch(), dtype) == 1.0
