"""Every tensor of the five published models, by name, shape and count, on the meta device."""

from __future__ import annotations

import pytest

from stages import catalogue
from stages.models.load_weights import AUTOENCODER, CONDITIONER, DENOISER, tensor_sources
from tests.published import ALONE, WHOLE, config_of, main, parts, published_shapes

SAME_S, SAME_L = (244, 108_244_721, 108_244_529), (472, 852_127_457, 852_127_073)
SMALL = {
    DENOISER: (438, 459_130_896, 459_130_880),
    CONDITIONER: (3, 198_144, 198_144),
    AUTOENCODER: SAME_S,
}
MEDIUM = {
    DENOISER: (522, 1_453_170_192, 1_453_170_176),
    CONDITIONER: (3, 198_144, 198_144),
    AUTOENCODER: SAME_L,
}
COUNTS = {
    "small-music-base": SMALL,
    "small-sfx-base": SMALL,
    "medium-base": MEDIUM,
    "SAME-S": {"": SAME_S},
    "SAME-L": {"": SAME_L},
}
"""Tensors, values, and values without buffers."""


@pytest.mark.parametrize("model", WHOLE)
def test_the_family_declares_the_published_config(model):
    assert catalogue.family_of(model).model_config(model) == config_of(model)


@pytest.mark.parametrize("model", [*WHOLE, *ALONE])
def test_a_published_model_has_the_published_tensors_and_no_others(model):
    assert {part.prefix: part.differences for part in parts(model)} == {prefix: [] for prefix in COUNTS[model]}


@pytest.mark.parametrize("model", [*WHOLE, *ALONE])
def test_a_published_model_has_the_published_number_of_tensors_values_and_parameters(model):
    counts = {part.prefix: (len(part.tensors), part.num_values, part.num_parameters) for part in parts(model)}
    assert counts == COUNTS[model]


@pytest.mark.parametrize("model", [*WHOLE, *ALONE])
def test_the_loader_finds_a_place_for_every_published_tensor(model):
    networks = list(parts(model))
    whole_file = {name: shape for part in networks for name, shape in published_shapes(part).items()}
    for part in networks:
        sources = tensor_sources(model, part.network, whole_file, part.prefix or AUTOENCODER)
        assert {name: part.prefix + name for name in part.network.state_dict()} == sources


def test_the_table_lists_all_five_models_and_finds_no_difference(capsys):
    assert main() == 0
    shown = capsys.readouterr().out
    assert [model for model in (*WHOLE, *ALONE) if model not in shown] == []
    assert "total                     997   2,305,495,793   2,305,495,393" in shown
