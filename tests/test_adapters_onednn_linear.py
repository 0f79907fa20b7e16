"""Frozen products by oneDNN: when they are used, and that they equal those of F.linear."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages import catalogue
from stages.adapters.attach import Adapter, attach
from stages.adapters.factored_weight import FactoredWeight
from stages.adapters.layer import AdaptedConv1d, AdaptedLayer, AdaptedWeight
from stages.adapters.ops import onednn_linear
from stages.adapters.ops.frozen_matmul import frozen_product
from stages.adapters.ops.onednn_linear import adapted_linear, frozen_linear, is_faster
from stages.adapters.stacked.stacked_adapter import StackedAdapter, stack_adapter
from stages.records import AdapterSpec
from tests.dense_adapters import shake
from tests.test_adapters_stacked_adapter import gradients

COUNT, WIDTH, WIDER, RANK = 40, 256, 320, 16


class Counting:
    """Wraps or replaces the product, and counts calls."""

    def __init__(self, product: Callable[..., Tensor]) -> None:
        self.product, self.calls = product, 0

    def __call__(self, *factors: Tensor | None) -> Tensor:
        self.calls += 1
        return self.product(*factors)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Pretends that this machine is one where oneDNN is faster; tests may patch further."""
    monkeypatch.setattr(onednn_linear, "has_operation", lambda: True)
    monkeypatch.setattr(onednn_linear, "cpu_vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    return monkeypatch


@pytest.fixture
def seen(processor: pytest.MonkeyPatch) -> Counting:
    """Counts products that oneDNN would compute; torch computes them."""
    fake = Counting(F.linear)
    processor.setattr(onednn_linear, "onednn_product", fake)
    return fake


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Counting:
    """Counts products that oneDNN computes."""
    if not onednn_linear.has_operation():
        pytest.skip(f"torch {torch.__version__} has no mkldnn._linear_pointwise here")
    counting = Counting(onednn_linear.onednn_product)
    request.getfixturevalue("processor").setattr(onednn_linear, "onednn_product", counting)
    return counting


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def assert_as_near(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """As close to the exact values as torch's own result is."""
    assert ours.shape == exact.shape
    allowed = 1.5 * (theirs.double() - exact).norm() + 1e-7 * exact.norm()
    assert (ours.double() - exact).norm() <= allowed


Compute = Callable[..., Tensor]


def assert_product_and_gradients(ours: Compute, plain: Compute, *leaves: Tensor | None) -> None:
    """Compare gradients of a function with those of the plain one in float32 and float64."""
    found = []
    for compute, dtype in ((ours, torch.float32), (plain, torch.float32), (plain, torch.float64)):
        given = [None if leaf is None else leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
        out = compute(*given)
        wanted = [leaf for leaf in given if leaf is not None]
        found.append((out, *torch.autograd.grad(out, wanted, drawn(*out.shape, seed=9).to(dtype))))
    for one, other, exact in zip(*found, strict=True):
        assert_as_near(one, other, exact)


SHAPES = [(COUNT, WIDTH), (2, COUNT, WIDTH), (1, 1, COUNT, WIDTH)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_a_product_and_its_gradient_are_as_accurate_as_torchs(real, shape, biased):
    weight, bias = drawn(WIDER, WIDTH), drawn(WIDER) if biased else None

    def plain(tokens: Tensor) -> Tensor:
        return F.linear(tokens, weight.to(tokens.dtype), None if bias is None else bias.to(tokens.dtype))

    assert_product_and_gradients(lambda tokens: frozen_linear(tokens, weight, bias), plain, drawn(*shape))
    assert real.calls == 2


def strided(tokens: Tensor) -> dict[str, Tensor]:
    """The same values in another memory layout."""
    return {
        "columns first": tokens.mT.contiguous().mT,
        "part of wider rows": torch.cat([tokens, tokens], dim=-1)[..., : tokens.shape[-1]],
        "frames first": tokens.transpose(0, 1).contiguous().transpose(0, 1),
    }


@pytest.mark.parametrize("how", strided(torch.zeros(1, 1, 1)))
def test_tokens_may_have_any_memory_layout(real, how):
    weight, tokens = drawn(WIDER, WIDTH), drawn(2, COUNT, WIDTH)
    wanted = frozen_linear(tokens, weight)
    torch.testing.assert_close(frozen_linear(strided(tokens)[how], weight), wanted, rtol=1e-5, atol=1e-5)


def test_an_expanded_gradient_is_accepted(real):
    weight, tokens = drawn(WIDER, WIDTH), drawn(COUNT, WIDTH).requires_grad_()
    frozen_linear(tokens, weight).sum().backward()
    torch.testing.assert_close(tokens.grad, weight.sum(dim=0).expand(COUNT, -1), rtol=1e-5, atol=1e-5)


def test_a_transposed_weight_gives_the_same(real):
    weight, tokens = drawn(WIDER, WIDTH), drawn(COUNT, WIDTH)
    lying = weight.t().contiguous().t()
    assert is_faster(tokens, lying)
    torch.testing.assert_close(frozen_linear(tokens, lying), F.linear(tokens, weight), rtol=1e-5, atol=1e-4)


def test_tokens_without_a_gradient_get_none(real):
    p = drawn(WIDER).requires_grad_()
    out = adapted_linear(drawn(COUNT, WIDTH), drawn(WIDER, WIDTH), None, drawn(WIDER, RANK), drawn(RANK, WIDTH), p)
    before = real.calls
    out.sum().backward()
    assert p.grad is not None and real.calls == before


@pytest.mark.parametrize("rank", [1, 5, RANK, 65])
@pytest.mark.parametrize("biased", [True, False])
def test_an_adapted_product_and_its_gradients_are_as_accurate_as_torchs(real, rank, biased):
    weight, bias = drawn(WIDER, WIDTH), drawn(WIDER, seed=3) if biased else None

    def plain(tokens: Tensor, left: Tensor, right: Tensor, p: Tensor) -> Tensor:
        moved = F.linear(tokens, weight.to(tokens.dtype)) + F.linear(F.linear(tokens, right), left)
        return moved * p if bias is None else moved * p + bias.to(tokens.dtype)

    def ours(tokens: Tensor, left: Tensor, right: Tensor, p: Tensor) -> Tensor:
        return adapted_linear(tokens, weight, bias, left, right, p)

    leaves = (drawn(2, COUNT, WIDTH), 0.1 * drawn(WIDER, rank), drawn(rank, WIDTH), drawn(WIDER, seed=6))
    assert_product_and_gradients(ours, plain, *leaves)
    assert real.calls >= 2


def test_a_fresh_adapter_gives_the_base_product_to_the_bit(real):
    tokens, weight, bias = drawn(COUNT, WIDTH), drawn(WIDER, WIDTH), drawn(WIDER)
    fresh = adapted_linear(tokens, weight, bias, torch.zeros(WIDER, RANK), drawn(RANK, WIDTH), torch.ones(WIDER))
    assert torch.equal(fresh, frozen_linear(tokens, weight, bias))


def test_thin_factors_with_gaps_between_rows_do_not_use_onednn(seen):
    left, right = drawn(WIDER, 2 * RANK)[:, ::2], drawn(2 * RANK, WIDTH)[::2]
    tokens = drawn(10 * COUNT, WIDTH).requires_grad_()
    adapted_linear(tokens, drawn(WIDER, WIDTH), None, left, right, drawn(WIDER)).sum().backward()
    assert seen.calls == 2, "the weight's own, forward and backward"


def test_no_copy_of_the_weight_is_kept_for_the_backward(real):
    weight, tokens = drawn(WIDER, WIDTH), drawn(COUNT, WIDTH).requires_grad_()
    left, right, p = drawn(WIDER, RANK), drawn(RANK, WIDTH), drawn(WIDER).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        frozen_linear(tokens, weight)
        adapted_linear(tokens, weight, None, left, right, p)
    large = [one for one in kept if one.numel() >= weight.numel()]
    assert [one.data_ptr() for one in large] == [weight.data_ptr()] * 2


def norm_product(weight: Tensor, factor: Tensor) -> Tensor:
    return frozen_product(weight.to(factor.dtype), factor)


@pytest.mark.parametrize("transposed", [False, True])
def test_products_for_norms_are_as_accurate_as_torchs(real, transposed):
    weight = drawn(2, WIDTH, WIDER).mT if transposed else drawn(2, WIDER, WIDTH)
    assert_product_and_gradients(
        lambda factor: norm_product(weight, factor),
        lambda factor: weight.to(factor.dtype) @ factor.mT,
        drawn(2, RANK, WIDTH),
    )
    assert real.calls == 2 * 2, "of every layer, forward and backward"


def test_products_for_the_norms_of_one_layer_use_torchs_default(seen):
    norm_product(drawn(WIDER, WIDTH), drawn(RANK, WIDTH).requires_grad_()).sum().backward()
    assert seen.calls == 0


def test_products_for_the_norms_of_several_layers_use_onednn(seen):
    norm_product(drawn(3, WIDER, WIDTH), drawn(3, RANK, WIDTH).requires_grad_()).sum().backward()
    assert seen.calls == 2 * 3


def layer(*, count: int = COUNT, num_out: int = WIDER, num_in: int = WIDTH, dtype: torch.dtype = torch.float32):
    """Tokens and a weight."""
    return drawn(count, num_in).to(dtype), drawn(num_out, num_in).to(dtype)


def test_a_frozen_float32_product_of_many_tokens_uses_onednn(processor):
    assert is_faster(*layer())


ODD_LAYERS = {
    "one token": layer(count=1),
    "15 tokens": layer(count=15, num_in=1024, num_out=1024),
    "few outputs": layer(num_out=64, count=1024),
    "few inputs": layer(num_in=64, count=1024),
    "so little that a call costs more": layer(num_in=128, num_out=128, count=63),
    "16 bits": layer(dtype=torch.bfloat16),
    "64 bits": layer(dtype=torch.float64),
    "no memory": tuple(one.to("meta") for one in layer()),
    "a weight that is trained": (layer()[0], layer()[1].requires_grad_()),
    "a weight with gaps": (layer()[0], layer(num_in=2 * WIDTH)[1][:, ::2]),
    "rows of a wider weight": (layer()[0], layer(num_in=2 * WIDTH)[1][:, :WIDTH]),
    "tokens of another dtype": (layer()[0].double(), layer()[1]),
}


@pytest.mark.parametrize("what", ODD_LAYERS)
def test_a_product_uses_torchs_default_with(processor, what):
    assert not is_faster(*ODD_LAYERS[what])


def test_a_trained_bias_uses_torchs_default(processor):
    assert not is_faster(*layer(), drawn(WIDER).requires_grad_())


def test_autocast_uses_torchs_default(processor):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_faster(*layer())


def test_code_traced_by_the_compiler_uses_torchs_default(processor):
    """torch.compile does not support the operator with a gradient, and uses oneDNN by itself."""
    processor.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not is_faster(*layer())


@pytest.mark.parametrize("make", ["GenuineIntel", None])
def test_a_processor_where_it_was_not_measured_to_be_faster_uses_torchs_default(processor, make):
    processor.setattr(onednn_linear, "cpu_vendor", lambda: make)
    assert not is_faster(*layer())


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "NO AVX"])
def test_a_processor_without_avx512_uses_torchs_default(processor, capability):
    processor.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert not is_faster(*layer())


def test_a_torch_without_the_operation_uses_torchs_default(processor):
    processor.setattr(onednn_linear, "has_operation", lambda: False)
    assert not is_faster(*layer())


def test_a_torch_without_onednn_has_no_such_operation(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not onednn_linear.has_operation()


def test_a_torch_whose_operation_was_renamed_has_no_such_operation(monkeypatch):
    monkeypatch.setattr(onednn_linear, "_OPERATION", "_no_such_thing")
    assert not onednn_linear.has_operation()


LISTS = {
    "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\n\nprocessor\t: 1\n": "AuthenticAMD",
    "processor : 0\nvendor_id : GenuineIntel\n": "GenuineIntel",
    "processor : 0\nCPU implementer : 0x41\n": None,
}


@pytest.mark.parametrize("listed", LISTS)
def test_the_vendor_is_read_from_cpuinfo(tmp_path, listed):
    path = tmp_path / "cpuinfo"
    path.write_text(listed)
    assert onednn_linear.cpu_vendor_in(path) == LISTS[listed]


def test_an_unreadable_cpuinfo_gives_no_vendor(tmp_path):
    assert onednn_linear.cpu_vendor_in(Path(tmp_path / "none")) is None


class Net(nn.Module):
    """Wide enough for oneDNN: equal blocks behind a single layer, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDER), nn.SiLU(), nn.Linear(WIDER, WIDTH, bias=False)) for _ in range(2)
        )
        self.conv = nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.enter(tokens)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.conv(hidden.mT).mT


def stacked_net(kind: str) -> tuple[Net, Adapter, StackedAdapter]:
    torch.manual_seed(0)
    net = Net().requires_grad_(False)
    adapter = attach([net], AdapterSpec(kind=kind, rank=RANK, alpha=4.0), generator=torch.Generator().manual_seed(1))
    shake(adapter.named_parameters(), torch.Generator().manual_seed(5))
    return net, adapter, stack_adapter(adapter)


def step(net: Net, all_layers: StackedAdapter) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients."""
    with all_layers.precomputed():
        loss = net(drawn(2, COUNT, WIDTH)).square().mean()
        return loss.detach(), gradients(all_layers, loss)


every_kind = pytest.mark.parametrize("kind", catalogue.adapter_kinds())


@every_kind
def test_a_step_of_a_network_has_the_same_loss_and_gradients(real, monkeypatch, kind):
    net, _, all_layers = stacked_net(kind)
    loss, found = step(net, all_layers)
    assert real.calls >= 2 * 5 - 1, "every linear layer, and all but the first to the tokens"
    real.calls = 0
    monkeypatch.setattr(onednn_linear, "has_operation", lambda: False)
    plain, wanted = step(net, all_layers)
    assert real.calls == 0
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)
    for key, one in wanted.items():
        assert (found[key] - one).norm() <= 1e-5 * one.norm(), key


@every_kind
def test_the_same_step_gives_the_same_bits(real, kind):
    net, _, all_layers = stacked_net(kind)
    (loss, found), (again, others) = step(net, all_layers), step(net, all_layers)
    assert torch.equal(loss, again)
    assert all(torch.equal(one, others[key]) for key, one in found.items())


def test_a_recomputed_layer_has_the_gradients_of_one_that_was_kept(real):
    net, _, all_layers = stacked_net("dora-rows")
    _, kept = step(net, all_layers)
    for block in net.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    before = real.calls
    _, recomputed = step(net, all_layers)
    assert real.calls - before > before
    assert all(torch.equal(one, kept[key]) for key, one in recomputed.items())


@every_kind
def test_layers_one_by_one_use_torchs_default(seen, kind):
    net, _, _ = stacked_net(kind)
    net(drawn(2, COUNT, WIDTH)).sum().backward()
    assert seen.calls == 0


def test_a_convolution_uses_torchs_default(seen):
    base = nn.Conv1d(WIDTH, WIDER, 1).requires_grad_(False)
    conv = AdaptedConv1d(base)
    conv.precomputed = AdaptedWeight(drawn(WIDER), None, drawn(WIDER, RANK), drawn(RANK, WIDTH))
    conv(drawn(COUNT, WIDTH, COUNT))
    assert seen.calls == 0


def test_factors_with_folded_scales_are_not_scaled_again(real):
    base = nn.Linear(WIDTH, WIDER).requires_grad_(False)
    linear, tokens = AdaptedLayer(base), drawn(COUNT, WIDTH)
    p, left, right = drawn(WIDER), drawn(WIDER, RANK), drawn(RANK, WIDTH)
    linear.precomputed = AdaptedWeight(p, None, left, right, scales_folded=True)
    whole = FactoredWeight(weight_OI=base.weight).dense() * p[:, None] + left @ right
    torch.testing.assert_close(linear(tokens), F.linear(tokens, whole, base.bias), rtol=1e-4, atol=1e-3)
    assert real.calls == 1
