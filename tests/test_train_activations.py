"""What a pass holds for its backward: the formula against real steps and against counts of every operation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages import catalogue
from stages.adapters.kind import kind_named
from stages.bench.cases import Case, config_of, new_batch, new_training
from stages.errors import FilterMatchesNothing
from stages.train.forecast.activations import ForwardPass
from stages.train.forecast.autoencoder_memory import encoding_bytes
from stages.train.forecast.estimate import MIB, adapter_values
from stages.train.forecast.network_size import BatchSize, LayerUse, network_size
from stages.train.model.network import batch_losses
from stages.train.stage import TrainParams
from tests.measured_memory import network_config
from tests.small_networks import config

CPU = torch.device("cpu")
KINDS = catalogue.adapter_kinds()

COUNTED = [
    ("narrow-128", "lora", 1, 1024, "fp32", False, 16, 66.2),
    ("narrow-128", "dora-rows", 1, 108, "bf16", False, 16, 9.3),
    ("narrow-128", "dora-rows", 4, 200, "bf16", True, 64, 33.8),
    ("narrow-128", "dora-cols", 4, 200, "bf16", True, 64, 27.5),
    ("narrow-128", "bora", 1, 1024, "fp32", False, 16, 111.1),
    ("small-music-base", "lora", 4, 200, "bf16", True, 64, 437.9),
    ("small-music-base", "dora-rows", 1, 1024, "fp32", False, 16, 4957.6),
    ("small-music-base", "dora-cols", 1, 108, "bf16", False, 16, 502.7),
    ("small-music-base", "bora", 4, 200, "bf16", True, 64, 1171.8),
    ("medium-base", "lora", 1, 108, "bf16", False, 16, 878.4),
    ("medium-base", "dora-rows", 1, 1024, "fp32", False, 16, 10913.3),
    ("medium-base", "dora-rows", 4, 200, "bf16", True, 64, 1774.6),
    ("medium-base", "dora-cols", 1, 1024, "fp32", False, 16, 9284.5),
    ("medium-base", "bora", 1, 108, "bf16", False, 16, 1545.4),
]
"""MiB of activations at the peak of a step, counted operation by operation on torch's meta device (0.5.0)."""
FILTERED = [
    ("narrow-128", "dora-rows", "bf16", {"include": ("layers.2.",)}, 13.5),
    ("small-music-base", "lora", "bf16", {"include": ("layers.2.",)}, 706.2),
    ("small-music-base", "dora-rows", "bf16", {"exclude": ("to_local_embed",)}, 1542.5),
    ("medium-base", "bora", "bf16", {"exclude": ("to_local_embed",)}, 3865.9),
]
"""The same at 512 frames, where only some layers carry an adapter."""


def one_pass(model: str, kind: str, batch: BatchSize, precision: str, rank: int = 16, **filters: object) -> ForwardPass:
    return ForwardPass(
        network=network_size(network_config(model), **filters),  # type: ignore[arg-type]
        batch=batch,
        kind=kind_named(kind),
        rank=rank,
        itemsize=4 if precision == "fp32" else 2,
    )


@pytest.mark.parametrize(("model", "kind", "clips", "frames", "precision", "checkpointing", "rank", "mib"), COUNTED)
def test_activations_are_those_that_were_counted(model, kind, clips, frames, precision, checkpointing, rank, mib):
    found = one_pass(model, kind, BatchSize(num_clips=clips, num_frames=frames), precision, rank)
    assert found.activation_bytes(checkpointing=checkpointing) == pytest.approx(mib * MIB, rel=0.06)


@pytest.mark.parametrize(("model", "kind", "precision", "filters", "mib"), FILTERED, ids=str)
def test_layers_without_an_adapter_keep_less_and_blocks_before_all_adapters_nothing(
    model, kind, precision, filters, mib
):
    found = one_pass(model, kind, BatchSize(num_clips=1, num_frames=512), precision, **filters)
    assert found.activation_bytes(checkpointing=False) == pytest.approx(mib * MIB, rel=0.2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["lora", "dora-rows", "dora-cols", "bora"])
def test_a_real_step_holds_as_much(kind, precision):
    """Whoever changes a block, an adapter or what they keep must fit the formula again."""
    case = Case(model="tiny-base", num_frames=160, adapter_type=kind, base_precision=precision)
    training = new_training(case, config_of("tiny-base"), CPU)
    network, held = training.network, {}
    known = {tensor.untyped_storage().data_ptr() for root in (network.denoiser, network.conditioner)
             for tensor in (*root.parameters(), *root.buffers())}  # fmt: skip

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), network.precomputed_weights():
        loss = batch_losses(network, new_batch(case, training), paired=False).total(1.0)
    found = one_pass("tiny-base", kind, BatchSize(num_clips=1, num_frames=160), precision)
    assert loss.requires_grad
    assert found.activation_bytes(checkpointing=False) == pytest.approx(sum(held.values()), rel=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_counted_exactly(kind):
    case = Case(model="tiny-base", num_frames=8, adapter_type=kind, rank=2, base_precision="fp32")
    network = new_training(case, config(), CPU).network
    size = network_size(config())
    trained = network.adapter.named_parameters().values()
    ids = {id(parameter) for parameter in trained}
    frozen = [p for root in (network.denoiser, network.conditioner) for p in root.parameters() if id(p) not in ids]
    found, singular = adapter_values(size, TrainParams(model="tiny-base", adapter_type=kind, rank=2))
    assert found == sum(parameter.numel() for parameter in trained)
    assert (singular > 0) == kind.endswith("-xs")
    assert size.num_values == sum(parameter.numel() for parameter in frozen)


def test_matrices_of_blocks_are_distinguished_from_others():
    blocks = new_training(
        Case(model="tiny-base", num_frames=8, base_precision="fp32", rank=2), config(), CPU
    ).network.denoiser.model.transformer.layers
    matrices = [parameter for name, parameter in blocks.named_parameters() if name.endswith(".weight")]
    size = network_size(config())
    assert size.block_values == sum(matrix.numel() for matrix in matrices)
    assert size.block_rows == sum(len(matrix) for matrix in matrices)


def test_a_filter_is_obeyed_block_numbers_included():
    whole, some = network_size(config()), network_size(config(), ("layers.1.self_attn",))
    assert some.adapted[LayerUse.BLOCK_TOKENS].count == 2
    assert some.num_trained_blocks == whole.transformer.depth - 1
    assert network_size(config(), ("project_out",)).num_trained_blocks == 0
    assert network_size(config(), ("project_in",)).num_trained_blocks == whole.transformer.depth
    with pytest.raises(FilterMatchesNothing):
        network_size(config(), (f"layers.{whole.transformer.depth}.self_attn",))


def test_gradient_checkpointing_holds_less():
    one = one_pass("medium-base", "dora-rows", BatchSize(num_clips=1, num_frames=512), "bf16")
    assert one.activation_bytes(checkpointing=True) < 0.3 * one.activation_bytes(checkpointing=False)


@pytest.mark.parametrize(
    ("model", "seconds", "dtype", "mib"),
    [
        ("narrow-128", 10, torch.float32, 23.6),
        ("narrow-128", 190, torch.bfloat16, 229.2),
        ("small-music-base", 60, torch.float32, 820.5),
        ("small-music-base", 190, torch.bfloat16, 1686.8),
        ("medium-base", 10, torch.bfloat16, 185.1),
        ("medium-base", 190, torch.float32, 4929.3),
    ],
)
def test_an_autoencoder_works_in_as_much_as_was_counted(model, seconds, dtype, mib):
    _, working = encoding_bytes(network_config(model), seconds * 44_100, dtype)
    assert working == pytest.approx(mib * MIB, rel=0.05)


def test_an_autoencoder_s_weights_are_counted_in_its_dtype():
    of_narrow = network_config("narrow-128")
    wide, narrow = (encoding_bytes(of_narrow, 44_100, dtype)[0] for dtype in (torch.float32, torch.half))
    assert wide == 2 * narrow == 2_539_268
