"""8-bit quantisation of the base: outputs are those of the dequantised weights to the bit, memory is small."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from stages import catalogue
from stages.adapters.attach import Adapter, attach
from stages.adapters.layer import AdaptedLayer
from stages.adapters.quantized_layer import AdaptedQuantizedLayer
from stages.adapters.singular_vectors import SingularVectors, leading_singular_vectors
from stages.adapters.stacked.stacked_adapter import stack_adapter
from stages.errors import InvalidAdapterState, PackageMissing
from stages.models import quantized_linear
from stages.models.nets.dit.transformer import Denoiser
from stages.models.quantized_linear import (
    QuantizedLinear,
    parameter_bytes,
    quantization_of,
    quantize,
    quantized_layer_names,
    usable_quantization,
)
from stages.records import AdapterSpec
from tests.small_networks import config, denoiser_inputs, randomised

CONFIG = config(differential=True)
HOW = ("int8", "fp8")
DTYPES = [torch.float32, torch.bfloat16]
LAYERS = {
    *("self_attn.to_qkv", "self_attn.to_out", "cross_attn.to_q", "cross_attn.to_kv", "cross_attn.to_out"),
    *("ff.ff.0.proj", "ff.ff.2", "to_local_embed.0", "to_local_embed.2"),
}
"""Quantised layers of a block."""
ROUNDING = {"int8": 8e-3, "fp8": 5e-2}
"""Largest relative change of a matrix: half a step of 127, or of a mantissa of 3 bits, below its largest values."""


def network(dtype: torch.dtype = torch.float32) -> Denoiser:
    return randomised(Denoiser(CONFIG)).to(dtype)


def stored(how: str, dtype: torch.dtype = torch.float32, *, vectors: int = 0) -> Denoiser:
    """`vectors`: how many singular vectors of each weight are kept."""
    found = network(dtype)
    quantize(found, how, lambda name, weight_OI: leading(weight_OI, vectors) if vectors else None)
    return found


def leading(weight_OI: Tensor, count: int) -> SingularVectors:
    whole = leading_singular_vectors(weight_OI, count)
    return SingularVectors(U_OK=whole.U_OK[:, :count], V_IK=whole.V_IK[:, :count])


def rounded(small: Denoiser, dtype: torch.dtype) -> Denoiser:
    """A network in full precision with the dequantised weights of a quantised one."""
    plain = network(dtype)
    for name in quantized_layer_names(plain):
        plain.get_submodule(name).weight.data.copy_(small.get_submodule(name).dense())
    return plain


def gradients(denoiser: Denoiser, tensors: list[Tensor]) -> list[Tensor]:
    """Velocity, then the gradients of its sum of squares."""
    inputs = denoiser_inputs(CONFIG, 2, 12)
    velocity_BCT = denoiser(**inputs)
    return [velocity_BCT.detach(), *torch.autograd.grad(velocity_BCT.float().square().sum(), tensors)]


def moved(denoiser: Denoiser, kind: str) -> Adapter:
    """An adapter far from its initial values."""
    adapter = attach((denoiser,), AdapterSpec(kind=kind, rank=2, alpha=2.0), generator=chance(1))
    adapter.load({k: v + 0.05 * torch.randn(v.shape, generator=chance(2)) for k, v in adapter.state().items()}, "here")
    return adapter


def chance(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", HOW)
def test_only_the_matrices_of_the_blocks_are_quantised(how, dtype):
    before, after = network(dtype), stored(how, dtype)
    names = quantized_layer_names(before)
    assert {name.split(".", 4)[4] for name in names} == LAYERS
    assert len(names) == len(LAYERS) * len(before.model.transformer.layers)
    for name, module in before.named_modules():
        if name in names:
            found = after.get_submodule(name).dense()
            change = (found.float() - module.weight.float()).norm() / module.weight.float().norm()
            assert found.dtype is dtype
            assert 0 < change < ROUNDING[how]
    untouched = {name for name, _ in before.named_parameters()} - {f"{name}.weight" for name in names}
    assert all(torch.equal(before.get_parameter(name), after.get_parameter(name)) for name in untouched)


@pytest.mark.parametrize("how", HOW)
def test_quantisation_and_memory_are_reported(how):
    assert (quantization_of(network()), quantization_of(stored(how))) == ("none", how)
    wide, small = parameter_bytes(network()), parameter_bytes(stored(how))
    matrices = sum(network().get_submodule(name).weight.numel() for name in quantized_layer_names(network()))
    # Three bytes less per value, and a few more per row.
    assert 3 * matrices * 0.9 < wide - small < 3 * matrices


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", HOW)
def test_outputs_equal_those_of_the_dequantised_weights_to_the_bit(how, dtype):
    small = stored(how, dtype)
    plain = rounded(small, dtype)
    inputs = denoiser_inputs(CONFIG, 2, 12)
    inputs["noised_BCT"] = inputs["noised_BCT"].requires_grad_()
    results = []
    for one in (small, plain):
        velocity_BCT = one(**inputs)
        results.append(
            [velocity_BCT, *torch.autograd.grad(velocity_BCT.float().square().sum(), [inputs["noised_BCT"]])]
        )
    assert all(torch.equal(left, right) for left, right in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("kind", "how"), [("lora", "int8"), ("dora-rows", "fp8"), ("dora-cols", "int8"), ("bora", "fp8")]
)
def test_an_adapter_has_the_outputs_and_gradients_of_one_on_the_dequantised_weights(kind, how):
    small = stored(how)
    plain = rounded(small, torch.float32)
    results = [gradients(one, list(moved(one, kind).named_parameters().values())) for one in (small, plain)]
    assert all(torch.equal(left, right) for left, right in zip(*results, strict=True))


@pytest.mark.parametrize("kind", catalogue.adapter_kinds())
def test_a_new_adapter_leaves_the_outputs_of_the_quantised_base_unchanged(kind):
    small = stored("int8", vectors=2 if kind.endswith("-xs") else 0)
    inputs = denoiser_inputs(CONFIG, 1, 10)
    before = small(**inputs)
    adapter = attach((small,), AdapterSpec(kind=kind, rank=2, alpha=2.0))
    assert (small(**inputs) - before).norm() < 1e-5 * before.norm()
    adapter.detach()
    assert torch.equal(small(**inputs), before)
    assert quantization_of(small) == "int8"


def test_singular_vectors_are_those_of_the_weight_before_quantisation():
    small, before = stored("fp8", vectors=2), network()
    attach((small,), AdapterSpec(kind="lora-xs", rank=2, alpha=2.0))
    for name in quantized_layer_names(before):
        layer, weight_OI = small.get_submodule(name), before.get_submodule(name).weight
        assert torch.equal(layer.attached_slots()[0].basis.U, leading_singular_vectors(weight_OI, 2).U_OK[:, :2])
        assert not torch.equal(layer.matrix(), weight_OI)


@pytest.mark.parametrize(("kept", "rank"), [(0, 1), (2, 3)])
def test_without_stored_singular_vectors_an_xs_adapter_is_refused(kept, rank):
    with pytest.raises(InvalidAdapterState, match=f"before {rank} singular vectors"):
        attach((stored("int8", vectors=kept),), AdapterSpec(kind="lora-xs", rank=rank, alpha=2.0))


def test_a_quantised_layer_can_be_neither_merged_nor_stacked():
    small = stored("int8")
    adapter = attach((small,), AdapterSpec(kind="lora", rank=2, alpha=2.0))
    before = parameter_bytes(small)
    with pytest.raises(InvalidAdapterState, match="8 bits"):
        adapter.merge()
    with pytest.raises(InvalidAdapterState, match="8 bits"):
        stack_adapter(adapter)
    assert parameter_bytes(small) == before


@pytest.mark.parametrize("kind", ["lora", "dora-rows", "dora-cols", "bora", "bora-xs"])
def test_no_dequantised_weight_is_saved_for_the_backward_pass(kind, monkeypatch):
    small, made = stored("int8", vectors=2), []
    layers = len(quantized_layer_names(small))
    moved(small, kind)
    real = QuantizedLinear.dense

    def seen(layer: QuantizedLinear) -> Tensor:
        dense_OI = real(layer)
        made.append(weakref.ref(dense_OI.untyped_storage()))
        return dense_OI

    monkeypatch.setattr(QuantizedLinear, "dense", seen)
    velocity_BCT = small(**denoiser_inputs(CONFIG, 1, 10))
    assert len(made) == layers
    assert not [one for one in made if one() is not None]
    velocity_BCT.sum().backward()
    assert len(made) > layers
    assert not [one for one in made if one() is not None]


def test_without_quantisation_torchao_is_not_needed(monkeypatch):
    monkeypatch.setattr(quantized_linear, "find_spec", lambda name: None)
    assert usable_quantization("none", torch.device("cpu"), print) == "none"
    with pytest.raises(PackageMissing, match="pip install torchao"):
        usable_quantization("int8", torch.device("cpu"), print)


def test_a_device_without_fp8_takes_int8_and_reports_it():
    said: list[str] = []
    assert usable_quantization("fp8", torch.device("meta"), said.append) == "int8"
    assert "cannot hold fp8" in said[0] and "int8" in said[0]
    assert usable_quantization("fp8", torch.device("cpu"), said.append) == "fp8"
    assert len(said) == 1


def test_an_unquantised_layer_is_adapted_as_usual():
    net = network()
    attach((net,), AdapterSpec(kind="lora", rank=2, alpha=2.0))
    kinds = {type(module) for module in net.modules() if isinstance(module, AdaptedLayer)}
    assert AdaptedQuantizedLayer not in kinds
