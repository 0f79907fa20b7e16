"""The memory that a training will need, compared with what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stages.train.forecast.autoencoder_memory import encoding_bytes
from stages.train.forecast.estimate import (
    CUDA_EAGER,
    CUDA_GRAPHS,
    ERROR,
    HOST,
    TrainingSetup,
    adapter_values,
    memory_estimate,
    waiting_bytes,
)
from stages.train.forecast.network_size import BatchSize
from stages.train.stage import TrainParams
from tests.measured_memory import ON_CPU, ON_CUDA, Peak
from tests.small_networks import config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def params(**changes: object) -> TrainParams:
    return TrainParams(**{"model": "tiny-base", "rank": 2, **changes})  # type: ignore[arg-type]


def setup(**changes: object) -> TrainingSetup:
    batch = BatchSize(num_clips=1, num_frames=32)
    return TrainingSetup(**{  # type: ignore[arg-type]
        "config": config(), "params": params(), "batch": batch, "dtype": torch.float32, "device": CPU, **changes
    })  # fmt: skip


def parts(**changes: object) -> dict[str, int]:
    return dict(memory_estimate(setup(**changes)).bytes_by_part)


@pytest.mark.parametrize("peak", [*ON_CPU, *ON_CUDA], ids=str)
def test_memory_is_estimated_within_the_error_stated_in_every_case_measured(peak):
    assert memory_estimate(peak.setup).total_bytes / peak.bytes == pytest.approx(1, abs=ERROR)


@pytest.mark.parametrize(
    ("network", "precision", "lengths", "mib"),
    [
        ("narrow-128", "bf16", 1, 177),
        ("narrow-128", "bf16", 10, 488),
        ("narrow-128", "bf16", 20, 822),
        ("narrow-128", "bf16", 98, 1015),
        ("narrow-128", "fp32", 90, 133),
        ("narrow-128", "fp16", 10, 117),
        ("wide-512", "bf16", 35, 1246),
    ],
)
def test_memory_of_batches_of_many_lengths_is_estimated_within_the_error_stated(network, precision, lengths, mib):
    """Growth of a process as in `measured_memory`, batches of 40 to 140 frames, 10 to 300 steps."""
    peak = Peak(network, 140, precision=precision, mib=mib)
    allowed = ERROR if precision != "fp16" else 2 * ERROR
    assert memory_estimate(replace(peak.setup, num_lengths=lengths)).total_bytes / peak.bytes == pytest.approx(
        1, abs=allowed
    )


def test_kernels_that_the_cpu_keeps_of_every_length_in_bf16_are_counted_up_to_a_most():
    def libraries(lengths: int, dtype: torch.dtype = torch.bfloat16, device: torch.device = CPU) -> int:
        return parts(num_lengths=lengths, dtype=dtype, device=device)["libraries"]

    assert libraries(11) - libraries(1) == 10 * HOST.length_bytes > 0
    assert libraries(1000) - libraries(1) == HOST.max_length_bytes
    assert libraries(1000, torch.float32) == libraries(1, torch.float32)
    assert libraries(1000, device=CUDA) == libraries(1, device=CUDA)


def test_batches_that_wait_for_their_turn_are_counted_where_they_lie():
    one, four = (params(gradient_accumulation=count) for count in (1, 4))
    channels = int(config()["model"]["io_channels"])
    assert waiting_bytes(setup(params=one)) == 0
    waiting = 3 * 3 * 4 * channels * 32 + 16 * 4**2
    assert waiting_bytes(setup(params=four)) == waiting
    assert waiting_bytes(setup(params=replace(four, optimal_transport=False))) == waiting - 16 * 4**2
    assert memory_estimate(setup(params=four)).total_bytes - memory_estimate(setup(params=one)).total_bytes == waiting
    assert parts(params=four, device=CUDA)["clips"] == 0


@pytest.mark.parametrize(
    ("changes", "copies"),
    [({}, 4), ({"optimizer": "lion"}, 3), ({"ema_decay": 0.9}, 5), ({"gradient_accumulation": 4}, 4)],
    ids=str,
)
def test_the_adapter_takes_its_values_gradients_moments_and_average(changes, copies):
    found = setup(params=params(**changes))
    assert parts(params=found.params)["adapter"] == 4 * copies * adapter_values(found.network, found.params)[0]


def test_the_base_takes_its_precision_and_blocks_in_8_bits_a_byte_per_value():
    wide, narrow = (parts(dtype=dtype)["weights"] for dtype in (torch.float32, torch.bfloat16))
    assert wide == 2 * narrow
    network = setup().network
    rest = 4 * (network.num_values - network.block_values + network.block_rows)
    assert parts(params=params(base_quantization="int8"))["weights"] == network.block_values + rest


@pytest.mark.parametrize(
    ("device", "changes", "model"),
    [
        (CPU, {}, HOST),
        (CUDA, {}, CUDA_GRAPHS),
        (CUDA, {"optimizer": "prodigy"}, CUDA_EAGER),
        (CUDA, {"base_quantization": "int8"}, CUDA_EAGER),
    ],
    ids=str,
)
def test_the_way_of_stepping_follows_from_device_and_settings(device, changes, model):
    assert setup(device=device, params=params(**changes)).cost_model is model
    assert setup(device=CUDA, eager=True).cost_model is CUDA_EAGER


def test_encoding_inside_the_loop_adds_the_autoencoder_and_its_work():
    held = encoding_bytes(config(), 10 * 44_100, torch.float32)
    assert parts(device=CUDA, clip_samples=10 * 44_100)["autoencoder"] == sum(held)
    assert held[0] <= parts(clip_samples=10 * 44_100)["autoencoder"] < sum(held)
    assert parts(device=CUDA)["autoencoder"] == 0


def test_a_base_in_8_bits_needs_memory_for_the_base_as_it_is_loaded():
    plain, stored = memory_estimate(setup()), memory_estimate(setup(params=params(base_quantization="int8")))
    assert stored.bytes_by_part["weights"] < plain.bytes_by_part["weights"]
    assert plain.bytes_by_part["weights"] + plain.bytes_by_part["libraries"] < stored.loading_bytes <= plain.total_bytes
    small = replace(stored, bytes_by_part={**stored.bytes_by_part, "activations": 0})
    assert small.total_bytes == stored.loading_bytes > sum(small.bytes_by_part.values())
    assert small.breakdown().startswith("to load the base before it is stored in 8 bits")


def test_a_batch_of_a_million_clips_is_estimated_as_quickly_as_any():
    one, million = (parts(batch=BatchSize(num_clips=clips, num_frames=32)) for clips in (1, 1_000_000))
    assert million["activations"] > 500_000 * one["activations"]


def test_an_estimate_leaves_the_random_numbers_of_the_program_alone():
    state = torch.get_rng_state()
    memory_estimate(setup(config={**config()}, clip_samples=44_100))
    assert torch.equal(torch.get_rng_state(), state)
