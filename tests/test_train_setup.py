"""Singular vectors of -xs trainings are computed once per weight, and cached in the store."""

from __future__ import annotations

import pytest

from stages.adapters import singular_vectors
from tests.small_training import Bench

LAYERS = 2
"""Linear layers of one self-attention, which is what these trainings adapt: to_qkv and to_out."""


@pytest.fixture
def counted(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the weights that are decomposed rather than found in the cache."""
    shapes: list[tuple[int, ...]] = []
    real = singular_vectors.singular_vectors
    monkeypatch.setattr(
        singular_vectors, "singular_vectors", lambda weight: shapes.append(tuple(weight.shape)) or real(weight)
    )
    return shapes


@pytest.mark.parametrize("kind", ["lora-xs", "dora-rows-xs", "dora-cols-xs", "bora-xs"])
def test_a_second_training_computes_no_singular_vectors(tmp_path, counted, kind):
    bench = Bench.of_latents(tmp_path)
    bench.train(adapter_type=kind, number_of_steps=1)
    assert len(counted) == LAYERS
    assert len(list((tmp_path / "shared" / "bases").glob("*.safetensors"))) == LAYERS

    again = bench.at("again")
    again.train(adapter_type=kind, number_of_steps=1, seed=7, rank=4)

    assert len(counted) == LAYERS


def test_every_kind_and_a_resumed_training_share_singular_vectors(tmp_path, counted):
    bench = Bench.of_latents(tmp_path)
    bench.train(adapter_type="lora-xs", number_of_steps=2)
    bench.at("other").train(adapter_type="bora-xs", number_of_steps=2)
    bench.at("more").train(adapter_type="lora-xs", number_of_steps=4, continued_from=bench.directory)
    assert len(counted) == LAYERS


def test_singular_vectors_are_those_of_the_stored_weights_in_any_precision(tmp_path, counted):
    bench = Bench.of_latents(tmp_path)
    bench.train(adapter_type="lora-xs", number_of_steps=1)
    bench.at("bf16").train(adapter_type="lora-xs", number_of_steps=1, base_precision="bf16")
    assert len(counted) == LAYERS


def test_cached_singular_vectors_train_to_the_same_adapter(tmp_path, counted):
    bench = Bench.of_latents(tmp_path)
    bench.train(adapter_type="bora-xs", number_of_steps=2)
    bench.at("again").train(adapter_type="bora-xs", number_of_steps=2)
    assert bench.bytes_of("adapter_fp32.safetensors") == bench.at("again").bytes_of("adapter_fp32.safetensors")
    assert len(counted) == LAYERS
