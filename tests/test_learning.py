"""Adapters learn: after a short training on a style, prompts that no training saw come out nearer to it."""

from __future__ import annotations

import pytest

from stages.judge.style_distance import WAYS
from tests.learning import NAMED, Dataset, Ear, Heard, Learned, Sizes, compared, dataset, train

SIZES = Sizes(clips=10, held_out=8, seconds=2.0)
STEPS = 80
SETTINGS = {"adapter_type": "lora", "learning_rate": 1e-3, "base_precision": "fp32"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return dataset(tmp_path_factory.mktemp("style"), SIZES, device="cpu")


@pytest.fixture(scope="module")
def learned(data) -> Learned:
    return train(data, data.root / "lora", [STEPS], "cpu", **SETTINGS)[-1]


@pytest.fixture(scope="module")
def heard(data, learned) -> Heard:
    ear = Ear.of(data, "cpu", cfg=1.0, steps=12)
    return compared(ear.hear(sorts=[NAMED]), ear.hear(learned.file, [NAMED]), data.wanted_BAX)


def test_no_clip_or_prompt_is_both_trained_on_and_held_out(data):
    trained = {path.read_text("utf-8") for path in (data.root / "train").glob("*.txt")}
    assert trained.isdisjoint(data.prompts[NAMED])


def test_the_loss_falls_on_clips_that_no_training_saw(learned):
    before, after = learned.held_out_losses
    assert after < 0.9 * before


@pytest.mark.parametrize("way", WAYS)
def test_prompts_that_no_training_saw_come_out_nearer_to_the_style(heard, way):
    assert heard.fall(way) > 0.4
