"""What a training will need: counted without memory, compared with what was measured."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from stages import catalogue
from stages.adapters.attach import attach
from stages.adapters.stacked.stacked_adapter import stack_adapter
from stages.bench.cases import Case, new_batch, new_training
from stages.errors import FilterMatchesNothing
from stages.models.nets.dit.conditioning import Conditioner
from stages.models.nets.dit.transformer import Denoiser
from stages.records import AdapterSpec
from stages.train.forecast import estimate
from stages.train.forecast.device_speed import Speed, measured_speed
from stages.train.forecast.dry_run import (
    FEW,
    MANY,
    Rehearsed,
    Size,
    encoding_bytes,
    free_kind,
    rehearsed,
    rehearsed_at,
    with_depth,
)
from stages.train.forecast.estimate import (
    ERROR,
    HOST,
    PLAIN_CUDA,
    RECORDED,
    Prospect,
    count_of,
    estimated,
    waiting_bytes,
)
from stages.train.forecast.op_counter import Ledger
from stages.train.model.network import Network, batch_losses
from stages.train.stage import TrainParams
from tests.measured_memory import ON_CPU, ON_CUDA, Peak
from tests.small_networks import config, randomised

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
SIZE = Size(num_clips=1, num_frames=32)
KINDS = catalogue.adapter_kinds()


def params(**changes: object) -> TrainParams:
    return TrainParams(**{"model": "tiny-base", "rank": 2, **changes})  # type: ignore[arg-type]


@cache
def counted(size: Size = SIZE, checkpointing: bool = False, depth: int = 2, **changes: object) -> Rehearsed:
    small = with_depth(config(), depth)
    return rehearsed(small, params(**changes), size, torch.float32, checkpointing=checkpointing)


def prospect(**changes: object) -> Prospect:
    usual = Prospect(config=with_depth(config(), 1), params=params(), size=SIZE, dtype=torch.float32, device=CPU)
    return replace(usual, **changes)


def test_a_ledger_counts_what_is_alive_and_remembers_the_most():
    with Ledger() as ledger:
        first = torch.empty(1000, device=META)
        second = first + 1
        del first
        third = second * 2
    assert (ledger.live_bytes, ledger.peak_bytes) == (8000, 8000)
    del second, third
    assert ledger.live_bytes == 0


def test_a_view_takes_no_memory_and_is_no_operation():
    with Ledger() as ledger:
        whole = torch.empty(10, 10, device=META)
        before = ledger.operations
        parts = [whole.T, whole[2:], whole.view(100)]
    assert (ledger.live_bytes, ledger.operations) == (400, before)
    assert len(parts) == 3


@pytest.mark.parametrize(
    ("left", "right", "dtype"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.bool, torch.float32, torch.float32),
        (torch.int64, 0.5, torch.float32),
        (torch.bfloat16, 0.5, torch.bfloat16),
        (torch.float16, 2, torch.float16),
    ],
    ids=str,
)
def test_elementwise_results_have_the_shape_and_type_that_torch_gives_them(left, right, dtype):
    first = torch.empty(3, 1, dtype=left, device=META)
    second = torch.empty(4, dtype=right, device=META) if isinstance(right, torch.dtype) else right
    plain = first * second
    with Ledger():
        product, turned = first * second, second * first
    assert product.dtype == turned.dtype == plain.dtype == dtype
    assert product.shape == plain.shape
    with Ledger():
        scalar = torch.empty((), device=META) * first
    assert scalar.dtype == (torch.empty((), device=META) * first).dtype


def test_what_is_known_already_is_left_out():
    weight = torch.empty(10, 10, device=META)
    ledger = Ledger()
    ledger.know([weight])
    with ledger:
        view = weight[1:]
    assert ledger.live_bytes == 0 and view.numel() == 90


def test_products_are_counted_in_multiplications_and_additions():
    with Ledger() as ledger:
        torch.empty(3, 4, device=META) @ torch.empty(4, 5, device=META)
    assert ledger.product_flops == 2 * 3 * 4 * 5


@pytest.mark.parametrize("kind", ["lora", "dora-rows", "bora"])
def test_the_rehearsal_holds_what_a_real_step_holds(kind):
    """Attention apart, the meta device sees the operations that the CPU makes."""
    small = with_depth(config(), 2)
    roots = (randomised(Denoiser(small)), randomised(Conditioner(small)))
    adapter = attach(roots, AdapterSpec(kind=kind, rank=2, alpha=2.0))
    network = Network(*roots, adapter, stack_adapter(adapter))
    case = Case(model="tiny-base", num_frames=SIZE.num_frames, adapter_type="lora", rank=2, base_precision="fp32")
    batch = new_batch(case, new_training(case, small, CPU))
    ledger = Ledger()
    ledger.know(tensor for root in roots for tensor in (*root.parameters(), *root.buffers()))
    assert network.layers is not None
    for group in network.layers.groups:
        squares = (group.row_squares_LO, group.column_squares_LI)
        known = [group.weight_LOI, *group.slot.parameters(), *group.slot.buffers()]
        ledger.know([*known, *(one for one in squares if one is not None)])
    with ledger, network.ready():
        loss = batch_losses(network, batch, paired=False).total(1.0)
    held = ledger.live_bytes
    del loss
    assert counted(adapter_type=kind).held_bytes == pytest.approx(held, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_shallow_networks_tell_what_a_deep_one_holds_and_computes(checkpointing):
    foretold = counted(depth=4, checkpointing=checkpointing)
    # A filter that leaves every layer in has the whole depth rehearsed.
    whole = counted(depth=4, checkpointing=checkpointing, include=("",))
    assert replace(foretold, passing_bytes=whole.passing_bytes) == whole
    assert foretold.passing_bytes == pytest.approx(whole.passing_bytes, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_counted_exactly(kind):
    case = Case(model="tiny-base", num_frames=8, adapter_type=kind, rank=2, base_precision="fp32")
    network = new_training(case, with_depth(config(), 1), CPU).network
    found = counted(depth=1, adapter_type=kind)
    trained = network.adapter.named_parameters().values()
    ids = {id(parameter) for parameter in trained}
    frozen = [p for root in (network.denoiser, network.conditioner) for p in root.parameters() if id(p) not in ids]
    assert found.trained_values == sum(parameter.numel() for parameter in trained)
    assert found.block_values + found.other_values == sum(parameter.numel() for parameter in frozen)


def test_frozen_singular_vectors_are_counted_for_the_kinds_that_have_them():
    free, singular = counted(adapter_type="dora-rows"), counted(adapter_type="dora-rows-xs")
    assert free.singular_values == 0
    assert singular.singular_values > free.trained_values / 2 > singular.trained_values


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_rehearsed_as_one_that_trains_its_directions(kind):
    assert not free_kind(kind).endswith("-xs")
    assert free_kind(kind).removesuffix("-xs") in (kind.removesuffix("-xs"), "dora", "dora-rows")


def test_recomputed_blocks_hold_less_and_compute_more():
    kept, again = (counted(depth=4, checkpointing=checkpointing) for checkpointing in (False, True))
    assert again.held_bytes + again.passing_bytes < 0.7 * (kept.held_bytes + kept.passing_bytes)
    assert again.product_flops > 1.2 * kept.product_flops
    assert again.base_flops == kept.base_flops


def test_four_clips_take_about_four_times_the_activations_of_one():
    one, four = (counted(Size(num_clips=clips, num_frames=512), depth=1).held_bytes for clips in (1, 4))
    assert four == pytest.approx(4 * one, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_batch_of_many_clips_is_told_by_two_of_few(checkpointing):
    seen: list[int] = []

    def step(size: Size) -> Rehearsed:
        seen.append(size.num_clips)
        return counted(size, checkpointing=checkpointing)

    size = Size(num_clips=40, num_frames=32)
    found, whole = rehearsed_at(size, step), counted(size, checkpointing=checkpointing)
    assert seen == [FEW, MANY]
    assert replace(found, passing_bytes=whole.passing_bytes) == whole
    assert found.passing_bytes == pytest.approx(whole.passing_bytes, rel=0.02)


def test_a_batch_of_a_million_clips_is_rehearsed_with_no_more_than_a_few(monkeypatch):
    rehearsals: list[int] = []

    def rehearse(config: object, params: object, size: Size, *rest: object, **options: object) -> Rehearsed:
        rehearsals.append(size.num_clips)
        return counted()

    monkeypatch.setattr(estimate, "rehearsed", rehearse)
    estimate._remembered.cache_clear()
    count_of(prospect(size=Size(num_clips=1_000_000, num_frames=32)))
    estimate._remembered.cache_clear()
    assert rehearsals == [FEW, MANY]


def test_kernels_that_the_cpu_keeps_of_every_length_in_bf16_are_counted_up_to_a_most():
    def libraries(lengths: int, dtype: torch.dtype = torch.bfloat16, device: torch.device = CPU) -> int:
        return estimated(prospect(num_lengths=lengths, dtype=dtype, device=device)).allowance_bytes

    assert libraries(11) - libraries(1) == 10 * HOST.length_bytes > 0
    assert libraries(1000) - libraries(1) == HOST.lengths_bytes
    assert libraries(1000, torch.float32) == libraries(1, torch.float32)
    assert libraries(1000, device=CUDA) == libraries(1, device=CUDA)


@pytest.mark.parametrize(
    ("network", "precision", "lengths", "mib"),
    [
        ("tiny-base", "bf16", 1, 177),
        ("tiny-base", "bf16", 10, 488),
        ("tiny-base", "bf16", 20, 822),
        ("tiny-base", "bf16", 98, 1015),
        ("tiny-base", "fp32", 90, 133),
        ("tiny-base", "fp16", 10, 117),
        ("wide-512", "bf16", 35, 1246),
    ],
)
def test_memory_of_batches_of_many_lengths_is_estimated_within_the_error_stated(network, precision, lengths, mib):
    """Growth of a process as in `measured_memory`, batches of 40 to 140 frames, 10 to 300 steps."""
    peak = Peak(network, 140, precision=precision, mib=mib)
    several = replace(peak.prospect, num_lengths=lengths)
    allowed = ERROR if precision != "fp16" else 2 * ERROR
    assert abs(estimated(several).total_bytes / peak.bytes - 1) < allowed


def test_batches_that_wait_for_their_turn_are_counted_where_they_lie():
    one, four = (params(gradient_accumulation=count) for count in (1, 4))
    channels = int(config()["model"]["io_channels"])
    assert waiting_bytes(prospect(params=one)) == 0
    waiting = 3 * 3 * 4 * channels * SIZE.num_frames + 16 * 4**2
    assert waiting_bytes(prospect(params=four)) == waiting
    assert waiting_bytes(prospect(params=replace(four, optimal_transport=False))) == waiting - 16 * 4**2
    assert estimated(prospect(params=four)).total_bytes - estimated(prospect(params=one)).total_bytes == waiting
    assert estimated(prospect(params=four, device=CUDA)).clips_bytes == 0


def test_the_rehearsal_leaves_the_random_numbers_of_the_program_alone():
    state = torch.get_rng_state()
    counted()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_filter_is_obeyed_block_numbers_included():
    only = counted(depth=3, include=("layers.2.self_attn",))
    assert 0 < only.trained_values < counted(depth=3).trained_values / 6
    with pytest.raises(FilterMatchesNothing):
        counted(depth=2, include=("layers.2.self_attn",))


@pytest.mark.parametrize(
    ("changes", "copies"),
    [({}, 4), ({"optimizer": "lion"}, 3), ({"ema_decay": 0.9}, 5), ({"gradient_accumulation": 4}, 4)],
    ids=str,
)
def test_the_adapter_takes_its_values_gradients_moments_and_average(changes, copies):
    found = prospect(params=params(**changes))
    assert estimated(found).adapter_bytes == 4 * copies * count_of(found).trained_values


def test_the_base_takes_its_precision_and_blocks_in_8_bits_a_byte_per_value():
    wide, narrow = (estimated(prospect(dtype=dtype)).weights_bytes for dtype in (torch.float32, torch.bfloat16))
    assert wide == 2 * narrow
    small = prospect(params=params(base_quantization="int8"))
    found = count_of(small)
    rest = 4 * (found.other_values + found.block_rows)
    assert estimated(small).weights_bytes == found.block_values + rest


@pytest.mark.parametrize(
    ("device", "changes", "manner"),
    [
        (CPU, {}, HOST),
        (CUDA, {}, RECORDED),
        (CUDA, {"optimizer": "prodigy"}, PLAIN_CUDA),
        (CUDA, {"base_quantization": "int8"}, PLAIN_CUDA),
    ],
    ids=str,
)
def test_the_way_of_stepping_follows_from_device_and_settings(device, changes, manner):
    assert prospect(device=device, params=params(**changes)).manner is manner


def test_encoding_inside_the_loop_adds_the_autoencoder_and_its_work():
    short, long = (encoding_bytes(config(), seconds * 44_100, torch.float32) for seconds in (1, 10))
    assert short[0] == long[0] > 0
    assert long[1] > 4 * short[1]
    encoding = estimated(prospect(device=CUDA, clip_samples=10 * 44_100))
    assert encoding.encoding_bytes == sum(long)
    assert encoding.total_bytes == estimated(prospect(device=CUDA)).total_bytes + sum(long)


RATIOS = pytest.mark.parametrize("peak", [*ON_CPU, *ON_CUDA], ids=str)
QUICK = [*ON_CPU[3:24:7], *ON_CPU[24::12], *ON_CUDA[:2], ON_CUDA[-1]]
"""The others take a minute."""


def ratio(peak: Peak) -> float:
    """Estimated over measured."""
    return estimated(peak.prospect).total_bytes / peak.bytes


@pytest.mark.parametrize("peak", QUICK, ids=str)
def test_memory_is_estimated_within_the_error_stated(peak):
    assert 1 - ERROR < ratio(peak) < 1 + ERROR


@pytest.mark.slow
@RATIOS
def test_memory_is_estimated_within_the_error_stated_in_every_case_measured(peak):
    assert 1 - ERROR < ratio(peak) < 1 + ERROR


def test_time_grows_with_what_there_is_to_do_and_shrinks_with_the_speed():
    speed = Speed(flops_per_second=1e11, bytes_per_second=1e10, operation_seconds=1e-6)
    twice = Speed(flops_per_second=2e11, bytes_per_second=2e10, operation_seconds=5e-7)

    def each(speed: Speed = speed, **changes: object) -> float:
        found = estimated(prospect(**changes), speed).seconds_per_step
        assert found is not None
        return found

    assert each(twice) == pytest.approx(each() / 2)
    assert each(size=Size(num_clips=2, num_frames=24)) > each()
    assert each(checkpointing=True) > each()
    assert each(params=params(gradient_accumulation=3)) == pytest.approx(3 * each())
    assert estimated(prospect()).seconds_per_step is None


def test_the_speed_of_this_machine_is_measured_in_sensible_units():
    speed = measured_speed(CPU, torch.float32)
    assert 1e8 < speed.flops_per_second < 1e14
    assert 1e7 < speed.bytes_per_second < 1e13
    assert 1e-8 < speed.operation_seconds < 1e-2


def test_a_base_in_8_bits_needs_room_for_the_base_as_it_is_loaded():
    plain = estimated(prospect())
    stored = estimated(prospect(params=params(base_quantization="int8")))
    assert stored.weights_bytes < plain.weights_bytes
    loaded = plain.weights_bytes + plain.allowance_bytes
    assert loaded < stored.start_bytes <= plain.total_bytes
    assert stored.total_bytes == max(stored.step_bytes, stored.start_bytes)
    small = replace(stored, activation_bytes=0)
    assert small.total_bytes == stored.start_bytes > small.step_bytes
    assert small.parts().startswith("to load the base before it is stored in 8 bits")


def test_a_layer_of_any_kind_counts_its_own_matrix():
    from stages.train.forecast.op_counter import BaseProducts, layers_of

    root = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 2)).to(META)
    products = BaseProducts()
    with products.counted([root]):
        root(torch.empty(5, 4, device=META))
    root(torch.empty(5, 4, device=META))
    assert len(layers_of(root)) == 2
    assert products.flops == 2 * 5 * (4 * 6 + 6 * 2)
