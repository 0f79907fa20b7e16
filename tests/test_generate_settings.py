"""Settings of a generation: defaults by objective, adapters as typed, what would be ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.field import broken_rules
from stages.generate.settings import AdapterUse, Generation, SamplerSettings
from stages.models.nets.dit import samplers


def test_a_base_model_takes_50_euler_steps_with_guidance():
    assert Generation(prompt="x").sampling("rectified_flow") == SamplerSettings(sampler="euler", steps=50, cfg=7.0)


def test_a_few_step_model_takes_8_ping_pong_steps_without_guidance():
    assert Generation(prompt="x").sampling("rf_denoiser") == SamplerSettings(sampler="pingpong", steps=8, cfg=1.0)


def test_what_is_asked_for_replaces_the_default():
    assert Generation(prompt="x", steps=20, cfg=3).sampling("rectified_flow").steps == 20


def test_every_sampler_that_can_be_asked_for_exists():
    (field,) = (field for field in broken_rules(Generation(prompt="x", sampler="none")) if field.name == "sampler")
    assert set(field.values) == set(samplers.SAMPLERS)


@pytest.mark.parametrize(
    ("text", "file", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("C:/clips/a.safetensors", "C:/clips/a.safetensors", 1.0),
        ("C:/clips/a.safetensors:2", "C:/clips/a.safetensors", 2.0),
        ("take:one.safetensors", "take:one.safetensors", 1.0),
    ],
)
def test_a_number_behind_the_last_colon_is_the_strength(text, file, strength):
    assert AdapterUse.parsed(text) == AdapterUse(file=Path(file), strength=strength)


def test_a_tilde_is_the_home_folder():
    assert AdapterUse.parsed("~/a.safetensors:0.5").file == Path.home() / "a.safetensors"


@pytest.mark.parametrize("text", ["a.safetensors:nan", "a.safetensors:inf"])
def test_a_strength_that_is_not_finite_is_refused(text):
    with pytest.raises(ValueError, match="finite"):
        AdapterUse.parsed(text)


def test_a_negative_prompt_without_guidance_would_be_ignored():
    asked = Generation(prompt="x", negative_prompt="hiss")
    assert [name for name, _ in asked.ignored("rf_denoiser")] == ["negative_prompt"]


def test_a_negative_prompt_with_guidance_is_not_ignored():
    assert list(Generation(prompt="x", negative_prompt="hiss").ignored("rectified_flow")) == []


@pytest.mark.parametrize(
    ("name", "value"), [("prompt", " \n"), ("seconds", 0.0), ("seed", -1), ("steps", 0), ("cfg", -1.0), ("cfg", 101.0)]
)
def test_a_value_out_of_range_breaks_a_rule(name, value):
    assert [field.name for field in broken_rules(Generation(**{"prompt": "x", name: value}))] == [name]
