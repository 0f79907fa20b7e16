"""The fused op for query, key and value heads against PyTorch ops. Its CUDA kernels: `test_gpu_kernels`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stages.models.nets.attention.attention import replace_differential_attention, replace_heads
from stages.models.nets.attention.differential import differential_attention
from stages.models.nets.attention.heads import eager_heads, fused_heads
from stages.models.nets.attention.rotary import RotaryEmbedding
from stages.models.nets.dit.transformer import Denoiser
from stages.models.nets.norms import RMSNorm
from tests.small_networks import config, denoiser_inputs, randomised

SELF, CROSS_QUERIES, CONTEXT = (0, 1, 2), (0,), (1, 2)
DIFFERENTIAL = [(0, 1, 2, 0, 1), (0, 0), (1, 1, 2)]


def norms(width: int) -> tuple[nn.Module, nn.Module]:
    made = [RMSNorm(width, 1e-6) for _ in range(2)]
    for number, norm in enumerate(made):
        values = torch.rand(width, generator=torch.Generator().manual_seed(number))
        norm.gamma = nn.Parameter(0.5 + values, requires_grad=False)
    return made[0], made[1]


@pytest.mark.parametrize("roles", [SELF, CROSS_QUERIES, CONTEXT, *DIFFERENTIAL])
@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("value_copies", [1, 2])
def test_fused_heads_and_their_gradients_equal_those_of_eager_ops(roles, rotated, value_copies):
    batch, count, heads, width = 2, 11, 3, 40
    features = torch.randn(batch, count, len(roles) * heads * width, generator=torch.Generator().manual_seed(3))
    features.requires_grad_()
    rotary = RotaryEmbedding(32)(count) if rotated else None

    ways = [make(features, roles, heads, *norms(width), rotary, value_copies) for make in (fused_heads, eager_heads)]

    assert [one is None for one in ways[0]] == [role not in roles for role in range(3)]
    found, wanted = ([one for one in way if one is not None] for way in ways)
    d_outs = [torch.randn(one.shape, generator=torch.Generator().manual_seed(4)) for one in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(found, features, d_outs)[0],
        torch.autograd.grad(wanted, features, d_outs)[0],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("differential", [True, False])
def test_a_denoiser_gives_the_same_with_fused_and_eager_heads(differential):
    read = config(differential=differential)
    network = randomised(Denoiser(read))
    inputs = denoiser_inputs(read, 2, 9)
    plain = network(**inputs)
    replace_heads(network, fused_heads)
    torch.testing.assert_close(network(**inputs), plain, rtol=1e-4, atol=1e-4)


def test_a_denoiser_gives_the_same_with_fused_differential_attention():
    read = config(differential=True)
    network = randomised(Denoiser(read))
    inputs = denoiser_inputs(read, 2, 9)
    inputs["padding_mask_BT"] = torch.arange(9)[None] < torch.tensor([[9], [6]])
    plain = network(**inputs)
    calls = []

    def counted(*heads):
        calls.append(1)
        return differential_attention(*heads)

    replace_differential_attention(network, counted)
    torch.testing.assert_close(network(**inputs), plain, rtol=1e-4, atol=1e-4)
    assert len(calls) == 2 * len(network.model.transformer.layers)
    replace_differential_attention(network, None)
    assert torch.equal(network(**inputs), plain)


def test_plain_attention_never_uses_the_differential_function():
    network = randomised(Denoiser(config(differential=False)))
    replace_differential_attention(network, differential_attention)
    assert all(getattr(module, "fused_differential", None) is None for module in network.modules())


@pytest.mark.parametrize("value_copies", [1, 2])
def test_the_custom_op_of_heads_passes_opcheck(value_copies):
    count, heads, width = 7, 2, 32
    features = torch.randn(2, count, 5 * heads * width, requires_grad=True)
    query_norm, key_norm = norms(width)
    rotary = RotaryEmbedding(32)(count)
    inputs = (features, query_norm.gamma, key_norm.gamma, rotary.cos_ND, rotary.sin_ND, heads, [0, 1, 2, 0, 1], 1e-6)
    torch.library.opcheck(torch.ops.sa3_trainer.heads.default, (*inputs, value_copies))
