"""Trainings on a base that is stored in 8 bits: results, messages, refusals and memory."""

from __future__ import annotations

import weakref
from importlib import util

import pytest
import torch

from stages.adapters import singular_vectors
from stages.adapters.adapter_file import read
from stages.contract import Inputs
from stages.errors import PackageMissing
from stages.models import quantized_linear
from stages.models.load_weights import stored_matrix
from stages.models.quantized_linear import quantization_of
from stages.train.dataset.examples import load_examples
from stages.train.job import Job
from stages.train.model import frozen_base
from stages.train.model.evaluation import evaluate
from stages.train.setup import new_network
from tests.small_training import Bench, params, weights

KINDS = ["dora-rows", "bora-xs"]


@pytest.fixture
def bench(tmp_path):
    return Bench.of_latents(tmp_path)


def job_of(bench: Bench, **changes) -> Job:
    inputs = Inputs(artifacts={"encode": bench.artifact}, weights=weights())
    return Job.of(inputs, params(**changes), bench.workspace())


@pytest.mark.parametrize("how", ["int8", "fp8"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_learns_on_it_and_its_files_read_back_to_the_bit(bench, kind, how):
    bench.train(base_quantization=how, adapter_type=kind, number_of_steps=6, learning_rate=1e-2)
    assert bench.config["loss_after"] < bench.config["loss_before"]
    # The stage compares the fp32 file with the trained network to the bit, and fails otherwise.
    assert read(bench.directory / "adapter_fp32.safetensors").spec.kind == kind
    plain = bench.at("plain")
    plain.train(adapter_type=kind, number_of_steps=6, learning_rate=1e-2)
    assert plain.losses != bench.losses
    assert plain.losses == pytest.approx(bench.losses, rel=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_training_goes_on_to_the_same_bits(bench, kind):
    whole, short = bench.at("whole"), bench.at("short")
    options = {"base_quantization": "int8", "adapter_type": kind}
    whole.train(number_of_steps=4, **options)
    short.train(number_of_steps=2, **options)
    bench.train(number_of_steps=4, continued_from=short.directory, **options)
    assert bench.results() == whole.results()


def test_the_quantisation_of_the_base_and_what_it_saves_are_printed(bench):
    bench.train(base_quantization="int8", number_of_steps=1)
    (line,) = [line for line in bench.said if "stored in int8" in line]
    assert line.startswith("base model stored in int8: ") and "kB instead of" in line
    plain = bench.at("plain")
    plain.train(number_of_steps=1)
    assert not [line for line in plain.said if "stored" in line]


def test_the_loss_of_the_unquantised_base_is_noted_beside_it_once(bench):
    short = bench.at("short")
    short.train(base_quantization="fp8", number_of_steps=2)
    job = job_of(bench.at("again"), base_quantization="fp8")
    examples = load_examples(job)
    exact = evaluate(new_network(job_of(bench.at("plain"))), examples, job.device).loss
    stored = evaluate(new_network(job), examples, job.device).loss
    found = (short.config["loss_before_unquantized"], short.config["loss_before"])
    assert found == (exact, stored) and exact != stored
    (line,) = [line for line in short.said if "unquantised" in line]
    assert f"{stored:.4f} with the base model in fp8, {exact:.4f} unquantised" in line

    bench.train(base_quantization="fp8", number_of_steps=4, continued_from=short.directory)
    assert not [line for line in bench.said if "unquantised" in line]
    assert bench.config["loss_before_unquantized"] == exact


@pytest.fixture
def alive(monkeypatch) -> list[int]:
    """How many earlier bases are still in memory whenever one is loaded."""
    found: list[int] = []
    loaded: list[weakref.ref[torch.nn.Module]] = []
    real = frozen_base.load_denoiser

    def counted(*rest):
        found.append(sum(earlier() is not None for earlier in loaded))
        denoiser = real(*rest)
        loaded.append(weakref.ref(denoiser))
        return denoiser

    monkeypatch.setattr(frozen_base, "load_denoiser", counted)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_unquantised_base_is_freed_before_the_quantised_one_is_loaded(bench, alive, kind):
    bench.train(base_quantization="int8", adapter_type=kind, number_of_steps=1)
    assert alive == [0, 0]


def test_a_resumed_training_does_not_load_the_unquantised_base(bench, alive):
    short = bench.at("short")
    short.train(base_quantization="int8", number_of_steps=1)
    alive.clear()
    bench.train(base_quantization="int8", number_of_steps=2, continued_from=short.directory)
    assert len(alive) == 1


def test_nothing_is_compared_where_nothing_was_rounded(bench, alive):
    bench.train(number_of_steps=1)
    assert len(alive) == 1
    assert bench.config["loss_before_unquantized"] is None


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("how", ["none", "int8"])
def test_directions_are_those_of_the_stored_weights_whatever_the_base_is_rounded_to(bench, precision, how):
    job = job_of(bench, adapter_type="bora-xs", base_precision=precision, base_quantization=how)
    for attachment in new_network(job).adapter._attached():
        stored_OI = stored_matrix(weights(), attachment.target.name)
        assert stored_OI.dtype == torch.float32
        assert torch.equal(attachment.slot.basis.U, singular_vectors.singular_vectors(stored_OI).U_OK[:, :2])


def test_singular_vectors_are_shared_with_trainings_on_the_unquantised_base(bench, monkeypatch):
    shapes: list[torch.Size] = []
    real = singular_vectors.singular_vectors
    monkeypatch.setattr(
        singular_vectors, "singular_vectors", lambda weight: shapes.append(weight.shape) or real(weight)
    )
    bench.train(adapter_type="lora-xs", number_of_steps=1, base_quantization="int8")
    adapted = len(shapes)
    bench.at("plain").train(adapter_type="lora-xs", number_of_steps=1)
    bench.at("fp8").train(adapter_type="lora-xs", number_of_steps=1, base_quantization="fp8")
    assert len(shapes) == adapted == 2


def test_dropout_needs_no_stacked_layers(bench):
    first, second = bench.at("first"), bench.at("second")
    for one, dropout in ((first, 0.5), (second, 0.5), (bench, 0.0)):
        one.train(base_quantization="int8", adapter_dropout=dropout)
    assert first.results() == second.results()
    assert first.losses != bench.losses


def test_the_network_is_really_stored_in_8_bits_and_computed_layer_by_layer(bench):
    network = new_network(job_of(bench, base_quantization="int8"))
    assert (quantization_of(network.denoiser), network.layers) == ("int8", None)


def test_without_the_extra_package_a_training_is_refused_before_it_begins(bench, monkeypatch):
    monkeypatch.setattr(quantized_linear, "find_spec", lambda name: None)
    with pytest.raises(PackageMissing, match=r"base_quantization int8 needs the package torchao"):
        bench.train(base_quantization="int8")
    assert not list(bench.directory.glob("*.safetensors"))


def test_the_package_is_looked_for_by_the_name_it_is_imported_by():
    assert util.find_spec(quantized_linear.PACKAGE) is not None
