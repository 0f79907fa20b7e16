"""The adapted layer: convolutions, dtypes, dropout, and what it keeps in memory."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from stages.adapters.attach import attach
from stages.adapters.factored_weight import guarded_sqrt
from stages.catalogue import adapter_kinds
from stages.errors import InvalidAdapterState
from stages.records import AdapterSpec
from tests.dense_adapters import Net, shake


def one_layer(spec: AdapterSpec, num_in: int = 40, num_out: int = 6, dtype: torch.dtype = torch.float32):
    """A Linear with an adapter with random values, and its parameters."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(num_in, num_out).to(dtype))
    adapter = attach([net], spec)
    shake(adapter.named_parameters(), torch.Generator().manual_seed(1))
    return net, adapter


def test_a_convolution_of_kernel_one_equals_a_linear_on_each_frame():
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv1d(5, 4, 1))
    linear = nn.Sequential(nn.Linear(5, 4))
    with torch.no_grad():
        linear[0].weight.copy_(conv[0].weight[:, :, 0])
        linear[0].bias.copy_(conv[0].bias)
    for net in (conv, linear):
        adapter = attach([net], AdapterSpec(kind="bora", rank=2, alpha=1.0))
        shake(adapter.named_parameters(), torch.Generator().manual_seed(2))
    frames_BCT = torch.randn(3, 5, 7)
    torch.testing.assert_close(conv(frames_BCT), linear(frames_BCT.mT).mT, rtol=0, atol=1e-5)


def test_the_bias_is_added_after_the_rows_are_scaled():
    net, adapter = one_layer(AdapterSpec(kind="dora-rows", rank=2, alpha=1.0))
    with torch.no_grad():
        adapter.named_parameters()["0.parametrizations.weight.0.magnitude"].zero_()
    torch.testing.assert_close(net(torch.randn(3, 40)), net[0].bias.expand(3, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["dora-rows", "bora", "dora-cols-xs"])
def test_under_autocast_the_norms_stay_in_float32(kind):
    net, _ = one_layer(AdapterSpec(kind=kind, rank=4, alpha=4.0))
    exact = net[0].factored()
    with torch.autocast("cpu", torch.bfloat16):
        whole = net[0].factored()
        output = net(torch.randn(3, 40))
        output.float().sum().backward()
    for scale, wanted in ((whole.p_O, exact.p_O), (whole.q_I, exact.q_I)):
        assert (scale is None) == (wanted is None)
        assert scale is None or torch.equal(scale, wanted)
    assert output.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["dora-rows", "dora-cols", "bora", "bora-xs"])
def test_no_full_precision_copy_of_a_16_bit_weight_is_kept_for_the_backward(kind):
    net, _ = one_layer(AdapterSpec(kind=kind, rank=2, alpha=1.0), 40, 30, torch.bfloat16)
    kept = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((tensor.dtype, tensor.numel()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        net(torch.randn(3, 40, dtype=torch.bfloat16, requires_grad=True))

    assert (torch.bfloat16, 1200) in kept
    assert (torch.float32, 1200) not in kept


class NewMatrices(TorchDispatchMode):
    """Names of the operations that create a tensor as large as the weight, views of the weight excepted."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.made = weight, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.numel() >= self.weight.numel():
                ours = tensor.untyped_storage().data_ptr() == self.weight.untyped_storage().data_ptr()
                self.made += [] if ours else [func.overloadpacket.__name__]
        return out


@pytest.mark.parametrize("kind", adapter_kinds())
def test_the_dense_adapted_weight_is_never_built(kind):
    net, adapter = one_layer(AdapterSpec(kind=kind, rank=2, alpha=1.0), 40, 30)
    tokens = torch.randn(3, 40, requires_grad=True)

    with NewMatrices(net[0].weight) as watch:
        net(tokens).square().sum().backward()

    # The columns of a weight whose rows were scaled need its entries squared: a passing thing, not kept.
    both = {"magnitude_r", "magnitude_c"} <= {key.rpartition(".")[2] for key in adapter.named_parameters()}
    assert set(watch.made) == ({"pow"} if both else set())


def test_one_dropout_mask_over_input_features_multiplies_a():
    net, adapter = one_layer(AdapterSpec(kind="dora-rows", rank=2, alpha=2.0, dropout=0.3))
    parameters = {key.rpartition(".")[2]: tensor for key, tensor in adapter.named_parameters().items()}
    tokens = torch.randn(5, 40)

    torch.manual_seed(123)
    ours = net(tokens)

    torch.manual_seed(123)
    mask = F.dropout(torch.ones(1, 40), 0.3)
    moved = net[0].weight + parameters["lora_B"] @ (parameters["lora_A"] * mask)
    weight = parameters["magnitude"][:, None] * moved / moved.norm(dim=1, keepdim=True)
    torch.testing.assert_close(ours, F.linear(tokens, weight, net[0].bias), rtol=0, atol=1e-5)
    assert {round(value, 4) for value in mask.unique().tolist()} == {0.0, round(1 / 0.7, 4)}


def test_dropout_zeroes_input_features_at_its_rate_and_keeps_the_mean():
    net, adapter = one_layer(AdapterSpec(kind="lora", rank=1, alpha=1.0, dropout=0.25), num_in=50, num_out=1)
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.zero_()
        for parameter in adapter.named_parameters().values():
            parameter.fill_(1.0)
        masks = torch.stack([net(torch.eye(50))[:, 0] for _ in range(800)])
    assert masks.eq(0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert masks.mean().item() == pytest.approx(1.0, abs=0.015)
    assert masks.eq(0).float().mean(dim=0).std() < 0.03


def test_activation_checkpointing_replays_the_dropout_mask():
    grads = []
    for recomputed in (False, True):
        net, adapter = one_layer(AdapterSpec(kind="dora-rows", rank=2, alpha=2.0, dropout=0.5))
        tokens = torch.ones(3, 40, requires_grad=True)
        torch.manual_seed(5)
        output = checkpoint(net, tokens, use_reentrant=False) if recomputed else net(tokens)
        output.square().sum().backward()
        grads.append([parameter.grad for parameter in adapter.named_parameters().values()])
    assert all(torch.equal(plain, again) for plain, again in zip(*grads, strict=True))


def test_the_guarded_square_root_has_gradient_zero_at_zero_and_below():
    square = torch.tensor([4.0, 0.0, -1e-9], requires_grad=True)
    root = guarded_sqrt(square)
    root.sum().backward()
    assert root.tolist() == [2.0, 0.0, 0.0]
    assert square.grad.tolist() == [0.25, 0.0, 0.0]


def test_norms_that_cancel_to_zero_give_finite_values_and_gradients():
    net, adapter = one_layer(AdapterSpec(kind="bora", rank=6, alpha=6.0), num_in=6, num_out=6)
    parameters = {key.rpartition(".")[2]: tensor for key, tensor in adapter.named_parameters().items()}
    with torch.no_grad():
        parameters["lora_A"].copy_(-torch.eye(6))
        parameters["lora_B"].copy_(net[0].weight)
    net(torch.randn(2, 6)).sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in parameters.values())


def test_casting_a_network_with_adapters_is_refused():
    net, adapter = one_layer(AdapterSpec(kind="dora-rows", rank=2, alpha=2.0))
    for cast in (net.half, net.bfloat16, net.double):
        with pytest.raises(InvalidAdapterState, match="Cast the base before attaching"):
            cast()
    net.to("cpu")
    assert {parameter.dtype for parameter in adapter.named_parameters().values()} == {torch.float32}


def test_a_network_in_evaluation_mode_still_trains_a_new_adapter_with_dropout():
    net = Net().eval()
    adapter = attach([net], AdapterSpec(kind="lora", rank=2, alpha=2.0, dropout=0.5))
    shake(adapter.named_parameters(), torch.Generator().manual_seed(1))
    tokens = torch.randn(1, 2, 7)
    assert not torch.equal(net(tokens), net(tokens))


def test_a_layer_compiles_without_graph_breaks_to_the_same_result():
    net, _ = one_layer(AdapterSpec(kind="bora", rank=2, alpha=2.0))
    twin = deepcopy(net)
    tokens = torch.randn(3, 40)
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    assert torch.equal(compiled(tokens), net(tokens))
