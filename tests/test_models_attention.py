"""Attention: masks, bands, rotary positions, and replaceable attention functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.models.nets.attention.attention import CrossAttention, SelfAttention, masked_attention, replace_attention
from stages.models.nets.attention.banded import band_mask, banded_attention
from stages.models.nets.attention.rotary import RotaryEmbedding, rotated
from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.models.nets.dit.transformer import Denoiser
from tests.small_networks import config, denoiser_inputs, randomised


def heads(num_tokens: int, seed: int, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3, num_tokens, 8, generator=generator) for _ in range(3)]


@given(num_tokens=st.integers(1, 200), before=st.integers(0, 40), after=st.integers(0, 40), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_banded_attention_equals_full_attention_with_a_band_mask(num_tokens, before, after, seed):
    query, key, value = heads(num_tokens, seed)
    distance = torch.arange(num_tokens) - torch.arange(num_tokens)[:, None]
    band = (distance >= -before) & (distance <= after)

    out = banded_attention(masked_attention, query, key, value, (before, after))

    torch.testing.assert_close(out, F.scaled_dot_product_attention(query, key, value, attn_mask=band))


def test_inner_tokens_attend_to_35_keys_and_the_ends_are_clipped():
    seen = band_mask(170, 85, (17, 17), torch.device("cpu")).flatten(0, 1).sum(dim=1)
    assert seen[17:-17].unique().tolist() == [35]
    assert seen[0] == seen[-1] == 18


def test_the_band_mask_grows_linearly_with_the_signal():
    sizes = [band_mask(62 * blocks, 62, (17, 17), torch.device("cpu")).numel() for blocks in (1, 10, 100)]
    assert sizes == [62 * 96, 10 * 62 * 96, 100 * 62 * 96]


def test_a_masked_key_has_no_influence_at_all():
    query, key, value = heads(10, 0)
    valid = torch.arange(10) < torch.tensor([[6], [10]])
    before = masked_attention(query, key, value, valid)

    key[0, :, 6:], value[0, :, 6:] = 1e4, -1e4

    assert torch.equal(masked_attention(query, key, value, valid), before)


def test_a_mask_may_differ_between_queries():
    query, key, value = heads(5, 0)
    own = torch.eye(5, dtype=torch.bool).expand(2, 5, 5)
    torch.testing.assert_close(masked_attention(query, key, value, own), value)


def test_replace_attention_reaches_every_layer_of_the_denoiser_with_both_differential_maps_in_one_call():
    read = config(differential=True)
    network = randomised(Denoiser(read))
    depth = read["model"]["diffusion"]["config"]["depth"]
    seen = []

    def counting(query, key, value, valid):
        seen.append(valid is None)
        return masked_attention(query, key, value, valid)

    replace_attention(network, counting)
    network(**denoiser_inputs(read, 2, 6), padding_mask_BT=torch.ones(2, 6, dtype=torch.bool))

    # One call attends for both maps, as heads side by side.
    assert seen == [False, True] * depth


def test_replace_attention_reaches_every_layer_of_the_autoencoder():
    for windowed in (False, True):
        network = randomised(Autoencoder(config(windowed=windowed)))
        calls = []
        replace_attention(
            network, lambda q, k, v, valid, calls=calls: calls.append(1) or masked_attention(q, k, v, valid)
        )
        network.decode(network.encode(torch.randn(1, 2, 8192)))
        assert len(calls) == 4 + 4


def test_every_attention_layer_starts_with_masked_attention():
    network = Denoiser(config())
    attentions = [module for module in network.modules() if isinstance(module, SelfAttention | CrossAttention)]
    assert len(attentions) == 2 * len(network.model.transformer.layers)
    assert all(module.attention is masked_attention for module in attentions)


def test_rotary_scores_depend_only_on_the_distance_of_two_positions():
    rotary = RotaryEmbedding(32)(50)
    query, key = torch.randn(2, 1, 1, 1, 64)
    at = lambda position: type(rotary)(rotary.cos_ND[position : position + 1], rotary.sin_ND[position : position + 1])  # noqa: E731
    score = lambda i, j: (rotated(query, at(i)) * rotated(key, at(j))).sum()  # noqa: E731
    torch.testing.assert_close(score(7, 3), score(44, 40), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(score(7, 3), score(7, 4))


def test_only_the_first_features_are_rotated():
    turned = rotated(torch.ones(1, 1, 5, 64), RotaryEmbedding(32)(5))
    assert torch.equal(turned[..., 32:], torch.ones(1, 1, 5, 32))
    assert not torch.equal(turned[0, 0, 1, :32], torch.ones(32))


def test_rotary_frequencies_are_rounded_with_the_network():
    network = Denoiser(config()).to(torch.bfloat16)
    rope = network.model.transformer.rotary_pos_emb
    assert rope.inv_freq[:4].tolist() == [1.0, 0.5625, 0.31640625, 0.177734375]
    torch.testing.assert_close(rope(4001).sin_ND[4000, 1], torch.tensor(4000 * 0.5625).sin(), atol=1e-5, rtol=0)
    assert rope(10).cos_ND.dtype == torch.float32
