"""The diffusion transformer: padding, conditioning dropout, memory tokens, precision, unsupported options."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import UnsupportedModelConfig
from stages.models.nets.dit.conditioning import Conditioning
from stages.models.nets.dit.fourier_features import fourier_features
from stages.models.nets.dit.transformer import Denoiser
from tests.small_networks import config, denoiser_inputs, randomised

SAME = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "differential"])
def read(request):
    return config(differential=request.param)


@pytest.fixture(scope="module")
def network(read):
    return randomised(Denoiser(read))


@given(seed=st.integers(0, 50), lengths=st.lists(st.integers(1, 20), min_size=2, max_size=3))
@settings(max_examples=15, deadline=None)
def test_padding_can_not_reach_valid_frames(read, network, seed, lengths):
    inputs = denoiser_inputs(read, len(lengths), 24, seed)
    padding_mask_BT = torch.arange(24) < torch.tensor(lengths)[:, None]
    with_noise = dict(inputs)
    for name in ("noised_BCT", "masked_latents_BCT", "inpaint_mask_B1T"):
        with_noise[name] = torch.where(padding_mask_BT[:, None], inputs[name], 100 * torch.randn_like(inputs[name]))

    clean = network(**inputs, padding_mask_BT=padding_mask_BT)
    dirty = network(**with_noise, padding_mask_BT=padding_mask_BT)

    assert torch.equal(*(out.transpose(1, 2)[padding_mask_BT] for out in (clean, dirty)))


def test_a_batch_trimmed_to_its_longest_item_gives_the_same_valid_frames(read, network):
    inputs = denoiser_inputs(read, 2, 30)
    mask = torch.arange(30) < torch.tensor([[9], [17]])
    trimmed = {name: value[..., :17] if name.endswith("T") else value for name, value in inputs.items()}

    whole = network(**inputs, padding_mask_BT=mask)
    short = network(**trimmed, padding_mask_BT=mask[:, :17])

    valid = mask[:, :17]
    torch.testing.assert_close(whole[..., :17].transpose(1, 2)[valid], short.transpose(1, 2)[valid], **SAME)


def test_a_clip_does_not_depend_on_its_batch(read, network):
    inputs = denoiser_inputs(read, 3, 12)
    alone = {name: _item(value, 1) for name, value in inputs.items()}
    torch.testing.assert_close(network(**inputs)[1:2], network(**alone), **SAME)


def _item(value, index):
    if isinstance(value, Conditioning):
        return Conditioning(*(part[index : index + 1] for part in value))
    return value[index : index + 1]


def test_a_mask_of_ones_is_no_mask(read, network):
    inputs = denoiser_inputs(read, 2, 12)
    masked = network(**inputs, padding_mask_BT=torch.ones(2, 12, dtype=torch.bool))
    torch.testing.assert_close(masked, network(**inputs), **SAME)


def test_a_dropped_clip_is_denoised_without_its_context_and_the_others_unchanged(read, network):
    inputs = denoiser_inputs(read, 2, 12)
    other = dict(inputs)
    other["conditioning"] = Conditioning(
        torch.randn_like(inputs["conditioning"].context_BSE), inputs["conditioning"][1]
    )
    dropped = torch.tensor([True, False])
    out = network(**inputs, dropped_B=dropped)
    assert torch.equal(out[0], network(**other, dropped_B=dropped)[0])
    assert not torch.equal(out[0], network(**inputs)[0])
    assert torch.equal(out[1], network(**inputs)[1])


def test_a_dropped_context_contributes_nothing_because_its_projections_have_no_bias(read, network):
    captured = []
    hooks = [layer.cross_attn.register_forward_hook(lambda *a: captured.append(a[-1])) for layer in _layers(network)]
    network(**denoiser_inputs(read, 2, 5), dropped_B=torch.tensor([True, True]))
    for hook in hooks:
        hook.remove()
    assert len(captured) == len(_layers(network))
    assert all(out.abs().max() == 0 for out in captured)


def _layers(network):
    return network.model.transformer.layers


def test_no_inpainting_inputs_equal_an_empty_mask(read, network):
    inputs = denoiser_inputs(read, 2, 8)
    zeros = inputs | {"inpaint_mask_B1T": torch.zeros(2, 1, 8), "masked_latents_BCT": torch.zeros(2, 16, 8)}
    absent = {name: value for name, value in inputs.items() if "inpaint" not in name and "masked" not in name}
    assert torch.equal(network(**zeros), network(**absent))
    with pytest.raises(ValueError, match="together"):
        network(**absent, inpaint_mask_B1T=torch.zeros(2, 1, 8))


def test_the_local_condition_of_memory_tokens_is_zero_not_the_projection_of_zeros(read, network):
    grown = {}
    layer = _layers(network)[0]
    hook = layer.to_local_embed.register_forward_hook(lambda *a: grown.setdefault("out", a[-1]))
    network(**denoiser_inputs(read, 1, 8))
    hook.remove()
    assert grown["out"].shape[1] == 8


def test_the_timestep_is_rounded_to_the_networks_dtype_before_its_features(read):
    network = randomised(Denoiser(read)).to(torch.bfloat16)
    inputs = denoiser_inputs(read, 2, 6)
    exact = torch.tensor([0.3, 0.7])
    rounded = exact.to(torch.bfloat16).float()
    out = [network(**inputs | {"timestep_B": timestep}) for timestep in (exact, rounded)]
    assert not torch.equal(exact, rounded)
    assert torch.equal(*out)
    assert out[0].dtype == torch.bfloat16


def test_fourier_features_are_cosines_then_sines_in_cycles_per_unit():
    features = fourier_features(torch.tensor([0.0, 1.0]), 256)
    assert features[0].tolist() == [1.0] * 128 + [0.0] * 128
    assert features[1, 0] == pytest.approx(-1, abs=1e-6)
    assert features[1, 127] == pytest.approx(1, abs=1e-2)


def test_fourier_features_cached_in_inference_mode_can_be_differentiated():
    with torch.inference_mode():
        fourier_features(torch.tensor([0.5]), 64)
    weight = torch.ones(64, requires_grad=True)
    (fourier_features(torch.tensor([0.5]), 64) @ weight).backward()
    assert weight.grad is not None


def test_gradient_checkpointing_changes_neither_output_nor_gradients(read):
    network = randomised(Denoiser(read))
    inputs = denoiser_inputs(read, 2, 6)
    noised = inputs["noised_BCT"].requires_grad_()
    results = []
    for checkpointing in (False, True):
        network.model.transformer.checkpointing = checkpointing
        out = network(**inputs)
        results.append((out, torch.autograd.grad(out.square().sum(), noised)[0]))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], atol=0, rtol=1e-5)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("global_cond_type", "prepend"),
        ("patch_size", 2),
        ("norm_type", "layer_norm"),
        ("timestep_features_logsnr", True),
    ],
)
def test_an_unsupported_option_is_refused_by_name(option, value):
    read = config()
    read["model"]["diffusion"]["config"][option] = value
    with pytest.raises(UnsupportedModelConfig, match=option):
        Denoiser(read)


def test_a_config_without_its_diffusion_section_is_refused():
    with pytest.raises(UnsupportedModelConfig, match="diffusion"):
        Denoiser({"model": {}})
