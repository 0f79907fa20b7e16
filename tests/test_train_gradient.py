"""Gradients of a step: accumulation, clipping, EMA, third-party optimisers and recorded norms."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import load_file

from cache.manifest import read_rows
from stages import catalogue
from stages.adapters import adapter_file
from stages.errors import PackageMissing, Stopped
from stages.train.optim.optimizer import Optimizer, single_stacks
from stages.train.record.layer_norms import RECORD_EVERY, LayerRow, group_names, group_of, norms
from stages.train.record.metrics import ClipRow, StepRow
from tests.small_training import Bench
from tests.test_train_optimizer import loss_of, parameters, params, same, take_step, values


@pytest.fixture
def bench(tmp_path):
    return Bench.of_latents(tmp_path, (12, 20, 7, 15, 9))


def adapter_of(bench):
    return load_file(bench.directory / "adapter_fp32.safetensors")


def distance(left, right):
    return max(float((left[key] - right[key]).norm() / left[key].norm().clamp(min=1e-8)) for key in left)


# Accumulation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", catalogue.adapter_kinds())
def test_accumulated_batches_give_the_adapter_of_the_larger_batch(bench, kind):
    changes = {"number_of_steps": 6, "adapter_type": kind, "weight_decay": 0.1}
    larger, added = bench.at("larger"), bench.at("added up")
    larger.train(batch_size=4, **changes)
    added.train(batch_size=2, gradient_accumulation=2, **changes)
    assert added.losses == pytest.approx(larger.losses, rel=1e-5)
    assert distance(adapter_of(larger), adapter_of(added)) < 1e-3


def test_accumulated_batches_share_the_dropout_masks_of_their_step(bench):
    changes = {"number_of_steps": 4, "adapter_dropout": 0.5, "learning_rate": 1e-2}
    larger, added = bench.at("larger"), bench.at("added up")
    larger.train(batch_size=3, **changes)
    added.train(batch_size=1, gradient_accumulation=3, **changes)
    assert added.losses == pytest.approx(larger.losses, rel=1e-5)


def test_an_accumulated_step_has_a_row_for_every_clip_it_saw(bench):
    bench.train(batch_size=2, gradient_accumulation=3, number_of_steps=2)
    rows = read_rows(bench.directory / "metrics.parquet", ClipRow)
    assert [row.step for row in rows] == [1] * 6 + [2] * 6
    assert {row.clip_id for row in rows} == {f"clip{number}" for number in range(5)}


# Clipping -------------------------------------------------------------------------------------------------------------


def test_a_gradient_above_the_limit_is_scaled_to_it_and_its_direction_kept():
    tensors = parameters()
    optimizer = Optimizer(tensors, params(gradient_clip=0.5))
    norm = take_step(optimizer, loss_of(tensors))
    gradients = {name: tensor.cos() for name, tensor in parameters().items()}
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor.grad, gradients[name].detach() * 0.5 / norm, rtol=1e-5, atol=1e-6)


def test_a_gradient_below_the_limit_stays_to_the_bit():
    clipped, plain = parameters(), parameters()
    for tensors, changes in ((clipped, {"gradient_clip": 100.0}), (plain, {})):
        optimizer = Optimizer(tensors, params(**changes))
        for _ in range(3):
            take_step(optimizer, loss_of(tensors))
    assert same(values(clipped), values(plain))


def test_steps_parquet_has_the_gradient_norm_before_clipping(bench):
    plain, clipped = bench.at("plain"), bench.at("clipped")
    plain.train(number_of_steps=1)
    clipped.train(number_of_steps=1, gradient_clip=1e-3)
    norms_of = [read_rows(one.directory / "steps.parquet", StepRow)[0].gradient_norm for one in (plain, clipped)]
    assert norms_of[0] == norms_of[1] > 1e-3


# Weight decay ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pulled", [True, False])
def test_magnitudes_are_decayed_unless_excepted(pulled):
    names = {"a": "layers.0.lora_A", "b": "layers.0.magnitude"}
    tensors = {names[name]: tensor for name, tensor in parameters().items()}
    before = values(tensors)
    optimizer = Optimizer(tensors, params(weight_decay=0.5, decay_magnitudes=pulled))
    take_step(optimizer, sum((tensor * 0).sum() for tensor in tensors.values()))
    torch.testing.assert_close(tensors["layers.0.lora_A"].detach(), before["layers.0.lora_A"] * (1 - 1e-2 * 0.5))
    factor = 1 - 1e-2 * 0.5 if pulled else 1
    torch.testing.assert_close(tensors["layers.0.magnitude"].detach(), before["layers.0.magnitude"] * factor)


# EMA ------------------------------------------------------------------------------------------------------------------


def test_the_ema_is_the_textbook_s():
    tensors = parameters()
    optimizer = Optimizer(tensors, params(ema_decay=0.5))
    expected = values(tensors)
    for step in range(4):
        optimizer.begin_step(step)
        take_step(optimizer, loss_of(tensors))
        kept = min(0.5, (1 + step) / (10 + step))
        expected = {name: kept * expected[name] + (1 - kept) * tensors[name].detach() for name in expected}
    for name, found in optimizer.ema.state().items():
        torch.testing.assert_close(found, expected[name])


def test_a_skipped_update_does_not_move_the_ema():
    tensors = parameters()
    optimizer = Optimizer(tensors, params(ema_decay=0.5))
    optimizer.begin_step(0)
    take_step(optimizer, loss_of(tensors))
    before = optimizer.ema.state()
    take_step(optimizer, loss_of(tensors) * float("nan"))
    assert same(optimizer.ema.state(), before)


def test_the_ema_is_exported_beside_the_adapter_and_differs_from_it(bench):
    bench.train(ema_decay=0.9, number_of_steps=6)
    spec = adapter_file.read(bench.directory / "adapter.safetensors").spec
    averaged = adapter_file.read(bench.directory / "adapter_ema.safetensors")
    assert averaged.spec == spec
    assert averaged.metadata["ema_decay"] == "0.9"
    exact = load_file(bench.directory / "adapter_ema_fp32.safetensors")
    assert any(not torch.equal(exact[key], tensor) for key, tensor in adapter_of(bench).items())
    assert bench.config["loss_after_ema"] != bench.config["loss_after"]


def test_the_ema_changes_nothing_in_the_adapter_itself(bench):
    plain, averaged = bench.at("plain"), bench.at("averaged")
    plain.train()
    averaged.train(ema_decay=0.9)
    assert averaged.bytes_of("adapter.safetensors") == plain.bytes_of("adapter.safetensors")
    assert not (plain.directory / "adapter_ema.safetensors").exists()


# Rules from a library -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prodigy", "lion"])
def test_a_third_party_optimizer_resumes_from_its_state_to_the_bit(name):
    pytest.importorskip("pytorch_optimizer")
    whole, stopped = parameters(), parameters()
    optimizer = Optimizer(whole, params(optimizer=name))
    for _ in range(6):
        take_step(optimizer, loss_of(whole))
    first = Optimizer(stopped, params(optimizer=name))
    for _ in range(3):
        take_step(first, loss_of(stopped))
    state, resumed = first.state(), {key: torch.nn.Parameter(tensor) for key, tensor in values(stopped).items()}
    second = Optimizer(resumed, params(optimizer=name))
    second.load(state)
    for _ in range(3):
        take_step(second, loss_of(resumed))
    assert same(values(resumed), values(whole))
    assert same(second.state(), optimizer.state())


@pytest.mark.parametrize("name", ["prodigy", "lion"])
def test_a_third_party_optimizer_skips_an_update_that_is_not_finite(name):
    pytest.importorskip("pytorch_optimizer")
    tensors = parameters()
    optimizer = Optimizer(tensors, params(optimizer=name))
    take_step(optimizer, loss_of(tensors))
    before = values(tensors)
    take_step(optimizer, loss_of(tensors) * float("inf"))
    assert same(values(tensors), before)


def test_prodigy_reports_the_rate_that_it_has_estimated():
    pytest.importorskip("pytorch_optimizer")
    tensors = parameters()
    optimizer = Optimizer(tensors, params(optimizer="prodigy", learning_rate=1e-4))
    for step in range(20):
        optimizer.begin_step(step)
        take_step(optimizer, loss_of(tensors))
    found = optimizer.rule.optimizer.param_groups[0]["d"]
    assert found > 1e-6
    assert optimizer.rule.effective_rate() == found


def test_lion_moves_every_value_by_the_rate():
    pytest.importorskip("pytorch_optimizer")
    tensors = parameters()
    before = values(tensors)
    take_step(Optimizer(tensors, params(optimizer="lion", weight_decay=0.0)), loss_of(tensors))
    for name, tensor in tensors.items():
        torch.testing.assert_close((tensor.detach() - before[name]).abs(), torch.full_like(tensor, 1e-2))


def test_an_optimizer_whose_package_is_missing_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(PackageMissing, match="pip install pytorch-optimizer"):
        Optimizer(parameters(), params(optimizer="lion"))


# Layers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "group"),
    [
        ("model.transformer.layers.11.ff.0.parametrizations.weight.0.lora_A", "model.transformer.layers.11"),
        ("model.to_cond_embed.0.parametrizations.weight.0.lora_B", "model.to_cond_embed"),
        ("conditioners.seconds_total.embedder.0.parametrizations.weight.0.lora_A", "conditioners.seconds_total"),
    ],
)
def test_a_tensor_belongs_to_its_block_or_its_part_of_the_network(key, group):
    assert group_of(key) == group


def test_norms_of_a_group_are_over_all_its_tensors():
    names = {"a": "model.layers.0.lora_A", "b": "model.layers.1.lora_A"}
    tensors = {names[name]: tensor for name, tensor in parameters().items()}
    stacks = single_stacks(tensors)
    assert group_names(stacks) == ["model.layers.0", "model.layers.1"]
    expected = torch.stack([tensor.detach().norm() for tensor in tensors.values()])
    torch.testing.assert_close(norms([tensor.detach() for tensor in tensors.values()], stacks), expected)


def test_layers_parquet_has_the_first_step_and_every_hundredth_after_it(bench):
    bench.train(number_of_steps=RECORD_EVERY + 2, include=("layers.0.self_attn", "layers.1.self_attn"))
    rows = read_rows(bench.directory / "layers.parquet", LayerRow)
    assert [row.step for row in rows] == [1, 1, RECORD_EVERY + 1, RECORD_EVERY + 1]
    assert len({row.group for row in rows}) == 2
    assert all(row.gradient_norm > 0 and row.update_norm > 0 and row.value_norm > 0 for row in rows)


def test_recorded_norms_are_those_of_the_update_that_was_made(bench):
    first, second = bench.at("one"), bench.at("two")
    first.train(number_of_steps=1)
    second.train(number_of_steps=1, learning_rate=2e-3, weight_decay=0.0)
    sizes = [read_rows(one.directory / "layers.parquet", LayerRow)[0].update_norm for one in (first, second)]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.05)


# Everything at once ---------------------------------------------------------------------------------------------------

MANY = {
    **{"schedule": "inverse", "warmup_steps": 2, "gradient_accumulation": 2, "gradient_clip": 0.1, "ema_decay": 0.9},
    **{"decay_magnitudes": False, "adapter_dropout": 0.2, "crops_per_clip": 2},
}


@pytest.mark.parametrize(
    "change", [{}, {"optimizer": "prodigy"}, {"frames_per_batch": 40}, {"schedule": "cosine"}], ids=str
)
def test_a_stopped_training_with_every_option_ends_as_an_uninterrupted_one(tmp_path, change):
    bench = Bench.of_latents(tmp_path, (12, 40, 7), window=20)
    straight, stopped = bench.at("straight"), bench.at("stopped")
    straight.train(number_of_steps=9, **{**MANY, **change})
    for steps in (2, 3):
        with pytest.raises(Stopped):
            stopped.train(stop_after=steps, number_of_steps=9, **{**MANY, **change})
    stopped.train(number_of_steps=9, **{**MANY, **change})
    assert stopped.results() == straight.results()


def test_a_step_without_options_is_torch_s_adamw_to_the_bit():
    """Pinned: options left at their defaults change no bit of an update."""
    tensors = parameters()
    optimizer = Optimizer(tensors, params())
    plain = parameters()
    reference = torch.optim.AdamW(plain.values(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01, fused=True)
    for step in range(3):
        optimizer.begin_step(step)
        take_step(optimizer, loss_of(tensors))
        reference.zero_grad()
        loss_of(plain).backward()
        reference.step()
    assert same(values(tensors), values(plain))
