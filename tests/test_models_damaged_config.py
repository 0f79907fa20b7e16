"""A model_config.json with a value that is missing or of the wrong kind is refused in words, whatever value it is."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.errors import StageError, UnsupportedModelConfig, WeightsNotFound
from stages.models.checkpoint_folder import open_folder
from stages.models.load_weights import load_autoencoder, load_conditioner, load_denoiser
from stages.train.dataset.examples import shift_options
from tests import test_models_checkpoint_folder

folder = test_models_checkpoint_folder.folder  # a fixture

VALUES = (None, "x", -1, 0, [], {}, 3.7)
SIZES = [
    ("sample_rate",),
    ("sample_size",),
    ("model", "io_channels"),
    ("model", "pretransform", "config", "downsampling_ratio"),
    ("model", "pretransform", "config", "io_channels"),
    ("model", "diffusion", "config", "embed_dim"),
    ("model", "diffusion", "config", "depth"),
]


def places(part: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value."""
    entries = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(config: dict[str, Any], place: tuple[Any, ...], *value: object) -> dict[str, Any]:
    """A copy with another value there; without one, the entry is taken out."""
    config = copy.deepcopy(config)
    part: Any = config
    for key in place[:-1]:
        part = part[key]
    if value:
        (part[place[-1]],) = value
    else:
        del part[place[-1]]
    return config


def use(folder: Path, config: dict[str, Any]) -> None:
    """Everything that reads the config."""
    (folder / "model_config.json").write_text(json.dumps(config))
    weights = open_folder("tiny-base", folder)
    shift_options(weights.config)
    for load in (load_denoiser, load_conditioner, load_autoencoder):
        load(weights)


def is_used(folder: Path, config: dict) -> bool:
    """False where it is refused in words; any other error is raised."""
    try:
        use(folder, config)
    except StageError:
        return False
    return True


@pytest.mark.parametrize("place", SIZES, ids=lambda place: place[-1])
def test_a_damaged_size_is_noticed_where_the_folder_is_opened(folder, place):
    config = json.loads((folder / "model_config.json").read_text())
    for damaged in [changed(config, place), *(changed(config, place, value) for value in VALUES[:6])]:
        (folder / "model_config.json").write_text(json.dumps(damaged))
        with pytest.raises(WeightsNotFound, match=r"model_config\.json is not that of a Stable Audio 3 base model"):
            open_folder("tiny-base", folder)


@pytest.mark.parametrize("number", range(len(VALUES)))
def test_no_value_anywhere_leads_to_anything_but_words(folder, number):
    config = json.loads((folder / "model_config.json").read_text())
    every, refused = list(places(config))[number :: 4 * len(VALUES)], 0
    for turn, place in enumerate(every):
        value = VALUES[(number + turn) % len(VALUES)]
        refused += not is_used(folder, changed(config, place, value))
    assert refused


@pytest.mark.slow
def test_so_it_is_for_every_value_at_every_place(folder):
    config = json.loads((folder / "model_config.json").read_text())
    damaged = (
        [changed(config, place), *(changed(config, place, value) for value in VALUES)] for place in places(config)
    )
    used = [is_used(folder, one) for every in damaged for one in every]
    assert used.count(False) > used.count(True)


def test_strides_that_do_not_give_the_downsampling_ratio_are_refused(folder):
    config = json.loads((folder / "model_config.json").read_text())
    place = ("model", "pretransform", "config", "pretransform", "config", "patch_size")
    with pytest.raises(UnsupportedModelConfig, match="are not its downsampling_ratio"):
        use(folder, changed(config, place, 128))


@pytest.mark.parametrize("options", ["x", {"type": "full", "min_length": None}, {"min_length": 4096}])
def test_a_shift_of_timesteps_that_cannot_be_computed_is_refused_before_the_first_step(folder, options):
    config = json.loads((folder / "model_config.json").read_text())
    with pytest.raises(UnsupportedModelConfig):
        shift_options(changed(config, ("model", "diffusion", "distribution_shift_options"), options))
