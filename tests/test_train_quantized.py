"""Trainings on a base that is stored in 8 bits: what is said, refused, reported and left behind."""

from __future__ import annotations

from importlib import util

import pytest
import torch

from stages.adapters import _svd
from stages.adapters._file import read
from stages.contract import Inputs
from stages.errors import PackageMissing
from stages.models import _quantized
from stages.models._quantized import quantization_of
from stages.train.evaluation import evaluate
from stages.train.examples import examples_of
from stages.train.job import Job
from stages.train.rounding import UNQUANTIZED, note_rounding
from stages.train.start import new_network, new_training
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


def test_it_is_said_how_the_base_is_stored_and_what_that_saves(bench):
    bench.train(base_quantization="int8", number_of_steps=1)
    (line,) = [line for line in bench.said if "stored in int8" in line]
    assert "(asked for: int8)" in line and "MiB instead of" in line
    plain = bench.at("plain")
    plain.train(number_of_steps=1)
    assert not [line for line in plain.said if "stored" in line]


def test_the_loss_of_the_unquantised_base_is_noted_beside_it_once(bench):
    job = job_of(bench, base_quantization="fp8")
    training, examples = new_training(job), examples_of(job)
    found = evaluate(training.network, examples, job.device)
    training.notes["before"] = list(found.by_timestep)
    bench.said.clear()

    note_rounding(job, training, examples)

    exact = new_network(job_of(bench.at("plain")))
    wanted = evaluate(exact, examples, job.device)
    assert training.notes[UNQUANTIZED] == list(wanted.by_timestep)
    assert training.notes[UNQUANTIZED] != training.notes["before"]
    (line,) = bench.said
    assert f"{found.loss:.4f} on the fp8 base, {wanted.loss:.4f} unquantised" in line
    note_rounding(job, training, examples)
    assert bench.said == [line]


def test_nothing_is_compared_where_nothing_was_rounded(bench):
    job = job_of(bench)
    training = new_training(job)
    note_rounding(job, training, examples_of(job))
    assert UNQUANTIZED not in training.notes


def test_singular_vectors_are_shared_with_trainings_on_the_base_as_it_is(bench, monkeypatch):
    shapes: list[torch.Size] = []
    real = _svd.singular_vectors
    monkeypatch.setattr(_svd, "singular_vectors", lambda weight: shapes.append(weight.shape) or real(weight))
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


def test_the_network_is_really_stored_small_and_computed_layer_by_layer(bench):
    network = new_network(job_of(bench, base_quantization="int8"))
    assert (quantization_of(network.denoiser), network.layers) == ("int8", None)


def test_without_the_extra_a_training_ends_before_it_begins(bench, monkeypatch):
    monkeypatch.setattr(_quantized, "find_spec", lambda name: None)
    with pytest.raises(PackageMissing, match=r"base_quantization int8 needs the package torchao"):
        bench.train(base_quantization="int8")
    assert not list(bench.directory.glob("*.safetensors"))


def test_the_package_is_looked_for_by_the_name_it_is_imported_by():
    assert util.find_spec(_quantized.PACKAGE) is not None
