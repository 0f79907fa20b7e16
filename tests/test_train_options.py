"""Options and params of a training that change what is learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.small_training import Bench, encoded, random_hidden, random_latents


@pytest.fixture
def bench(tmp_path):
    return Bench.of_latents(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 2e-3},
        {"rank": 3},
        {"alpha": 1.0},
        {"adapter_type": "bora"},
        {"adapter_dropout": 0.5},
        {"include": ("cross_attn",)},
        {"exclude": ("to_out",)},
        {"batch_size": 2},
        {"seed": 43},
        {"base_precision": "bf16"},
        {"base_precision": "fp16"},
        {"betas": (0.8, 0.95)},
        {"eps": 1e-3},
        {"weight_decay": 0.5},
        {"cfg_dropout_prob": 1.0},
        {"mask_probabilities": (0.0, 0.0, 1.0)},
        {"mask_probabilities": (0.0, 0.0, 0.0, 1.0)},
        {"silence_extension_seconds": 0.1},
        {"timestep_truncation": 0.3},
        {"optimizer": "prodigy"},
        {"optimizer": "lion"},
        {"schedule": "cosine"},
        {"schedule": "inverse"},
        {"warmup_steps": 3},
        {"gradient_accumulation": 2},
        {"gradient_clip": 1e-6},
        {"frames_per_batch": 60},
    ],
    ids=str,
)
def test_every_option_changes_what_is_learnt(tmp_path_factory, change):
    root = tmp_path_factory.getbasetemp() / "options"
    plain = Bench.of_latents(root, (12, 20, 7), window=30).at("plain")
    if not plain.directory.exists():
        plain.train()
    changed = plain.at(f"changed {change}"[:60])
    changed.train(**change)
    assert changed.bytes_of("adapter_fp32.safetensors") != plain.bytes_of("adapter_fp32.safetensors")


def test_excepting_magnitudes_from_decay_changes_what_is_learnt(bench):
    for pulled in (True, False):
        bench.at(f"{pulled}").train(weight_decay=0.5, decay_magnitudes=pulled)
    assert bench.at("True").bytes_of("adapter_fp32.safetensors") != bench.at("False").bytes_of(
        "adapter_fp32.safetensors"
    )


def test_the_context_weight_changes_what_is_learnt(bench):
    for weight in (0.0, 1.0):
        bench.at(f"{weight}").train(mask_probabilities=(0.0, 0.0, 1.0), mask_loss_weight=weight)
    assert bench.at("0.0").bytes_of("adapter_fp32.safetensors") != bench.at("1.0").bytes_of("adapter_fp32.safetensors")


def test_pairing_noise_with_clips_changes_batches_of_several_clips_only(bench):
    made = {}
    for batch_size in (1, 3):
        for paired in (True, False):
            one = bench.at(f"{batch_size} {paired}")
            one.train(batch_size=batch_size, optimal_transport=paired, number_of_steps=6)
            made[batch_size, paired] = load_file(one.directory / "adapter_fp32.safetensors")
    differs = {
        size: any(not torch.equal(made[size, True][k], made[size, False][k]) for k in made[size, True])
        for size in (1, 3)
    }
    assert differs == {1: False, 3: True}


def test_polarity_flips_change_trainings_from_audio(tmp_path):
    bench = Bench.of_audio(tmp_path, (20_000, 30_000))
    losses = {}
    for flipped in (True, False):
        one = bench.at(f"{flipped}")
        one.train(polarity_flip=flipped, number_of_steps=6)
        losses[flipped] = one.losses
    assert losses[True] != losses[False]


def test_a_withheld_prompt_has_no_influence_at_all(tmp_path):
    latents = random_latents((12, 20, 7))
    learnt = {}
    for share in (1.0, 0.0):
        for seed in (6, 60):
            root = tmp_path / f"{share} {seed}"
            artifact = encoded(root / "shared", root / "encoded", latents, random_hidden(3, seed))
            bench = Bench(root, artifact)
            bench.train(cfg_dropout_prob=share)
            learnt[share, seed] = bench.losses
    assert learnt[1.0, 6] == learnt[1.0, 60]
    assert learnt[0.0, 6] != learnt[0.0, 60]


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_losses_in_half_precision_are_those_of_full_precision_to_rounding(bench, precision, tolerance):
    # One timestep rounding apart: the network is given t in its own precision, and some features of t turn fast.
    full, half = bench.at("full"), bench.at("half")
    full.train()
    half.train(base_precision=precision)
    np.testing.assert_allclose(half.losses, full.losses, rtol=tolerance)
    assert half.config["base_precision_used"] == precision


def test_training_lowers_the_evaluation_loss(bench):
    facts = bench.train(number_of_steps=30, batch_size=3, learning_rate=3e-3, rank=8, include=None).facts
    assert facts["loss_after"] < 0.95 * facts["loss_before"]


def test_the_precision_of_the_autoencoder_changes_trainings_from_audio(tmp_path):
    bench = Bench.of_audio(tmp_path, (20_000, 30_000))
    for precision in ("fp32", "bf16"):
        bench.at(precision).train(autoencoder_precision=precision)
    assert bench.at("fp32").losses != bench.at("bf16").losses
