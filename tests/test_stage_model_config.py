"""Typed access to model_config.json."""

from __future__ import annotations

import pytest

from stages.contract import Weights
from stages.model_config import ModelConfig
from tests.small_networks import TINY, config


def test_sizes_are_read_from_their_sections():
    sizes = Weights(model="tiny", folder=TINY, config=config(), digests={}).sizes
    assert (sizes.sample_rate_hz, sizes.downsampling_ratio, sizes.audio_channels) == (44_100, 4096, 2)
    assert (sizes.latent_channels, sizes.num_memory_tokens) == (
        16,
        config()["model"]["diffusion"]["config"].get("num_memory_tokens", 0),
    )
    assert sizes.transformer_depth == config()["model"]["diffusion"]["config"]["depth"]


def test_the_text_encoder_has_a_default_folder():
    changed = config()
    del changed["model"]["conditioning"]["configs"][0]["config"]["subfolder"]
    assert ModelConfig(changed).text_encoder_folder == ModelConfig(config()).text_encoder_folder


def test_a_config_without_a_text_encoder_says_so():
    changed = config()
    changed["model"]["conditioning"]["configs"] = []
    with pytest.raises(KeyError, match="t5gemma"):
        ModelConfig(changed).max_prompt_tokens  # noqa: B018 - the access raises
