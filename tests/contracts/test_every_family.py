"""The contract of every model family; a new file in `families/` is held to all of it."""

from __future__ import annotations

import json

import pytest
import torch

from stages import catalogue
from stages.model_config import ModelConfig
from stages.models.bundled_weights import check_bundled_weights
from stages.models.checkpoint_folder import open_folder
from stages.models.load_weights import (
    NETWORKS,
    load_autoencoder,
    load_conditioner,
    load_denoiser,
    load_text_encoder,
)

MODELS = catalogue.models()


@pytest.fixture(params=MODELS)
def spec(request):
    return MODELS[request.param]


def config_of(spec):
    return catalogue.family_of(spec.name).model_config(spec.name)


def test_a_model_is_declared_once():
    assert len(MODELS) == sum(len(family.MODELS) for family in catalogue.families())


def test_the_config_has_the_sizes_that_the_model_is_listed_with(spec):
    config = ModelConfig(config_of(spec))
    assert (config.sample_rate_hz, config.max_samples) == (spec.sample_rate_hz, spec.max_samples)
    assert (config.latent_channels, config.downsampling_ratio) == (spec.latent_channels, spec.downsampling_ratio)
    assert config.max_prompt_tokens > 0
    assert spec.native_samples <= spec.max_samples


def test_the_config_is_json_and_made_anew_at_each_call(spec):
    first = config_of(spec)
    assert json.loads(json.dumps(first)) == first
    first["model"].clear()
    assert config_of(spec)["model"]


def test_every_network_can_be_built_from_the_config(spec):
    with torch.device("meta"):
        networks = [build(config_of(spec)) for build in NETWORKS.values()]
    assert all(network.state_dict() for network in networks)


def test_a_model_comes_from_the_hub_or_ships_with_the_project(spec):
    bundled = [family for family in catalogue.bundled_families() if spec in family.MODELS]
    assert (spec.repo is None) == bool(bundled)


@pytest.mark.parametrize("family", catalogue.bundled_families())
def test_bundled_weights_are_listed_with_their_digests_and_loaded_strictly(family):
    check_bundled_weights(family.FOLDER)
    for spec in family.MODELS:
        weights = open_folder(spec.name, family.FOLDER)
        for load in (load_denoiser, load_conditioner, load_autoencoder, load_text_encoder):
            load(weights)


@pytest.mark.parametrize("family", catalogue.bundled_families())
def test_bundled_weights_leave_room_in_the_wheel(family):
    assert sum(file.stat().st_size for file in family.FOLDER.rglob("*") if file.is_file()) < 24_000_000
