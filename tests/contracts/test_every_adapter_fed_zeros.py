"""Law: a layer that is fed zeros gives its adapter a gradient of exactly zero, for every kind, on every path.

The network has such layers in ordinary steps: without context, `to_local_embed` sees zeros only.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages import catalogue
from stages.adapters.attach import Adapter, attach
from stages.adapters.ops import fused_linear, onednn_linear
from stages.adapters.ops.onednn_linear import adapted_linear
from stages.adapters.stacked.stacked_adapter import StepPhase, stack_adapter
from stages.records import AdapterSpec
from tests.dense_adapters import shake

every_kind = pytest.mark.parametrize("kind", catalogue.adapter_kinds())
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
WIDTH, TOKENS = 24, 300


class Fed(nn.Module):
    """Layers side by side, each fed the same tokens: three of one shape, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.conv = nn.Conv1d(WIDTH, WIDTH, 1)


def fed(kind: str, dtype: torch.dtype) -> tuple[Fed, Adapter]:
    torch.manual_seed(4)
    net = Fed().to(dtype)
    adapter = attach([net], AdapterSpec(kind=kind, rank=3, alpha=4.0), generator=torch.Generator().manual_seed(1))
    shake(adapter.named_parameters(), torch.Generator().manual_seed(5))
    return net, adapter


def zeros(dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(TOKENS, WIDTH, dtype=dtype)


def loss_of(out: torch.Tensor) -> torch.Tensor:
    """A loss with other gradients at every place."""
    wanted = torch.randn(out.shape, generator=torch.Generator().manual_seed(8))
    return ((out.float() - wanted) * wanted).square().mean()


def assert_all_zero(gradients: dict[str, torch.Tensor | None]) -> None:
    wrong = {
        name: float(one.abs().max()) for name, one in gradients.items() if one is not None and one.count_nonzero() > 0
    }
    assert wrong == {}


def outputs(net: Fed, dtype: torch.dtype) -> list[torch.Tensor]:
    return [*(layer(zeros(dtype)) for layer in net.layers), net.conv(zeros(dtype).T[None])]


def gradients_of(adapter: Adapter, outs: list[torch.Tensor]) -> dict[str, torch.Tensor | None]:
    parameters = adapter.named_parameters()
    loss = torch.stack([loss_of(out) for out in outs]).sum()
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, found, strict=True))


@every_kind
@every_dtype
def test_layer_by_layer(kind, dtype):
    net, adapter = fed(kind, dtype)
    assert_all_zero(gradients_of(adapter, outputs(net, dtype)))


@every_kind
def test_under_autocast_with_a_float32_base(kind):
    net, adapter = fed(kind, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outs = outputs(net, torch.float32)
    assert_all_zero(gradients_of(adapter, outs))


@every_kind
@every_dtype
@pytest.mark.parametrize("below", ["dora-rows", "bora"])
def test_with_another_adapter_below(kind, dtype, below):
    net, _ = fed(below, dtype)
    above = attach([net], AdapterSpec(kind=kind, rank=3, alpha=4.0), generator=torch.Generator().manual_seed(2))
    shake(above.named_parameters(), torch.Generator().manual_seed(6))
    assert_all_zero(gradients_of(above, outputs(net, dtype)))


@every_kind
@every_dtype
@pytest.mark.parametrize("batched", [False, True])
def test_stacked(kind, dtype, batched):
    net, adapter = fed(kind, dtype)
    phase = StepPhase.BATCHED_BLOCKS if batched else StepPhase.BEFORE_BLOCKS
    stacked = stack_adapter(adapter, lambda name: phase)
    stacked.batches_blocks = batched
    parameters = {" ".join(one.keys): one.parameter for one in stacked.stacked_parameters()}
    with stacked.precomputed():
        run = stacked.run_each if batched else lambda layers, tokens: [layer(tokens) for layer in layers]
        outs = [*run(list(net.layers), zeros(dtype))]
        found = torch.autograd.grad(
            torch.stack([loss_of(out) for out in outs]).sum(), list(parameters.values()), allow_unused=True
        )
    assert_all_zero(dict(zip(parameters, found, strict=True)))


@every_dtype
@pytest.mark.parametrize("gated", [False, True])
def test_the_twin_of_the_joined_product_on_cuda(dtype, gated):
    generator = torch.Generator().manual_seed(3)
    normals = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731 - shorthand within this function
    joined, bias = normals(1, WIDTH + 16, WIDTH).to(dtype), normals(1, WIDTH + 16).to(dtype)
    bias[:, WIDTH:] = 0
    left, right, p = normals(1, WIDTH, 3).to(dtype), normals(1, 3, WIDTH).to(dtype), 1 + 0.1 * normals(1, WIDTH)
    trained = [one.requires_grad_() for one in (left, right, p)]
    out = fused_linear.joined_products(zeros(dtype)[None], joined, *trained, bias, gated=gated)
    found = torch.autograd.grad(loss_of(out), trained)
    assert_all_zero(dict(zip(("left", "right", "p"), found, strict=True)))


@pytest.mark.parametrize("by_onednn", [False, True])
def test_the_fused_layer_of_the_cpu(monkeypatch, by_onednn):
    if by_onednn and not onednn_linear.has_operation():
        pytest.skip(f"torch {torch.__version__} has no mkldnn._linear_pointwise here")
    if not by_onednn:
        monkeypatch.setattr(onednn_linear, "onednn_product", F.linear)
    generator = torch.Generator().manual_seed(3)
    normals = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731 - shorthand within this function
    weight, bias = normals(WIDTH, WIDTH), normals(WIDTH)
    trained = [one.requires_grad_() for one in (normals(WIDTH, 3), normals(3, WIDTH), 1 + 0.1 * normals(WIDTH))]
    out = adapted_linear(zeros(torch.float32), weight, bias, *trained)
    found = torch.autograd.grad(loss_of(out), trained)
    assert_all_zero(dict(zip(("left", "right", "p"), found, strict=True)))
