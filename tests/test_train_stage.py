"""Params of train: refused values, canonical form, and the identity of a run."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from cache.fingerprint import fingerprint
from stages.contract import Resources
from stages.train.stage import STAGE, TrainParams


def name_of(**changes):
    return fingerprint("train", {"params": TrainParams(model="tiny-base", **changes)})


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("model", ""),
        ("number_of_steps", 0),
        ("number_of_steps", 1.5),
        ("number_of_steps", True),
        ("learning_rate", 0.0),
        ("learning_rate", 0.011),
        ("learning_rate", float("nan")),
        ("rank", 0),
        ("rank", 257),
        ("alpha", 0.0),
        ("alpha", float("inf")),
        ("adapter_type", "dora-diagonal"),
        ("adapter_dropout", 1.0),
        ("include", "layers.1."),
        ("exclude", (1,)),
        ("batch_size", 0),
        ("seed", -1),
        ("seed", 2**31),
        ("base_precision", "int8"),
        ("export_precision", "bf16"),
        ("optimizer", "sgd"),
        ("schedule", "linear"),
        ("warmup_steps", -1),
        ("gradient_accumulation", 0),
        ("gradient_accumulation", 1025),
        ("gradient_clip", 0.0),
        ("ema_decay", 1.0),
        ("frames_per_batch", 0),
        ("frames_per_batch", 1_000_001),
        ("crops_per_clip", 0),
        ("base_quantization", "int4"),
        ("autoencoder_precision", "half"),
        ("betas", (0.9,)),
        ("betas", (0.9, 1.0)),
        ("eps", 0.0),
        ("weight_decay", -0.1),
        ("cfg_dropout_prob", 1.1),
        ("mask_probabilities", (0.5, 0.5)),
        ("mask_probabilities", (0.5, 0.6, 0.1)),
        ("mask_probabilities", (-0.1, 1.0, 0.1)),
        ("mask_loss_weight", -1.0),
        ("silence_extension_seconds", -1.0),
        ("timestep_truncation", 1.0),
    ],
)
def test_a_param_that_makes_no_sense_is_refused_by_name(field, wrong):
    with pytest.raises(ValueError, match=rf"train\.{field} must be .*; got "):
        TrainParams(model="tiny-base" if field != "model" else wrong, **({field: wrong} if field != "model" else {}))


@pytest.mark.parametrize(
    ("field", "together"),
    [
        ("warmup_steps", {"number_of_steps": 5, "warmup_steps": 5}),
        ("frames_per_batch", {"frames_per_batch": 100, "batch_size": 2}),
    ],
)
def test_a_value_that_another_field_rules_out_is_refused_by_name(field, together):
    with pytest.raises(ValueError, match=f"train.{field} .*{together[field]}"):
        TrainParams(model="tiny-base", **together)


@pytest.mark.parametrize("together", [{"number_of_steps": 5, "warmup_steps": 4}, {"frames_per_batch": 100}])
def test_values_that_go_together_are_accepted(together):
    assert TrainParams(model="tiny-base", **together).model == "tiny-base"


@pytest.mark.parametrize(("short", "long"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")])
def test_two_spellings_of_a_precision_have_one_fingerprint(short, long):
    assert name_of(base_precision=short) == name_of(base_precision=long)


def test_the_legacy_name_dora_has_the_fingerprint_of_dora_rows():
    assert name_of(adapter_type="dora") == name_of(adapter_type="dora-rows")


def test_whole_numbers_and_lists_have_the_fingerprint_of_floats_and_tuples():
    plain = name_of(alpha=8.0, mask_probabilities=(0.0, 1.0, 0.0), include=("layers",))
    assert name_of(alpha=8, mask_probabilities=[0, 1, 0], include=["layers"]) == plain


def test_an_alpha_left_unset_is_the_rank():
    assert name_of(rank=8) == name_of(rank=8, alpha=8.0)
    assert name_of(rank=8) != name_of(rank=8, alpha=4.0)


def test_an_unset_alpha_stays_unset_when_an_adapter_file_states_it():
    assert TrainParams(model="tiny-base", lora_checkpoint="sha256:0").alpha is None


def test_every_param_has_a_default_but_the_model():
    assert [field.name for field in fields(TrainParams) if field.default is field.default_factory] == ["model"]


def test_the_number_of_steps_names_the_artifact_and_not_the_run():
    assert "number_of_steps" in STAGE.excluded_from_identity(TrainParams(model="tiny-base"))


def test_a_cosine_schedule_makes_the_number_of_steps_part_of_the_run():
    assert "number_of_steps" not in STAGE.excluded_from_identity(TrainParams(model="tiny-base", schedule="cosine"))


@pytest.mark.parametrize("name", ["checkpoint_every", "keep_checkpoints", "log_every"])
def test_an_interval_below_one_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number, at least 1"):
        Resources(**{name: 0})


def test_the_declaration_loads_neither_torch_nor_numpy():
    told = "import sys, stages.train.stage; print(sorted({'torch', 'numpy', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("same", [{"adapter_type": "lora"}, {"weight_decay": 0.0}], ids=str)
def test_excepting_magnitudes_where_that_changes_nothing_is_the_same_training(same):
    assert name_of(**same, decay_magnitudes=False) == name_of(**same)


@pytest.mark.parametrize("wrong", [{"optimizer": "lion", "betas": (0.8, 0.9)}, {"optimizer": "prodigy", "eps": 1e-4}])
def test_what_an_optimiser_does_not_take_is_refused(wrong):
    with pytest.raises(ValueError, match=r"train\.(betas|eps) must be left at its default"):
        TrainParams(model="tiny-base", **wrong)
