"""Training from an encode artifact that lies in the tree: losses pinned, without autoencoder and text encoder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from cache.manifest import read_rows
from cache.shards import formats
from cache.shelf import Shelf
from stages.contract import Artifact, Inputs, Resources, Weights, Workspace
from stages.models._folder import open_folder
from stages.records import EncodedClip, PromptRow
from stages.train.metrics import StepRow
from stages.train.run import train
from stages.train.stage import TrainParams
from tests.golden.make_cached_artifact import CACHED, FAMILY, encoded

R = TypeVar("R")
LOSSES = (1.3581036, 1.8492949, 1.0783024, 1.4362801, 1.1824910)
"""Of five steps with these params. Every draw comes from seeds through numpy, and all arithmetic is float32: another
machine, thread count or torch release changes the order of sums and no more, which moves a loss by less than 1e-6 of
itself. Whatever moves one by 1e-5 has changed what is computed."""
PARAMS = TrainParams(
    model="tiny-base",
    number_of_steps=len(LOSSES),
    learning_rate=1e-3,
    rank=4,
    batch_size=2,
    base_precision="fp32",
    pre_encode=True,
)


@pytest.fixture(scope="module", params=formats())
def cached(request, tmp_path_factory) -> Path:
    """A store's copy of the artifact: shelves keep their registry beside the shards."""
    place = tmp_path_factory.mktemp(request.param)
    shutil.copytree(CACHED / request.param, place, dirs_exist_ok=True)
    return place


@pytest.fixture(scope="module")
def denoiser_alone(tmp_path_factory) -> Weights:
    """A checkpoint folder with neither autoencoder nor text encoder in it."""
    folder = tmp_path_factory.mktemp("weights")
    shutil.copyfile(FAMILY / "model_config.json", folder / "model_config.json")
    stored = load_file(FAMILY / "model.safetensors")
    kept = {name: tensor for name, tensor in stored.items() if not name.startswith("pretransform.")}
    assert len(kept) < len(stored)
    save_file(kept, folder / "model.safetensors")
    return replace(open_folder("tiny-s", FAMILY), folder=folder)


@pytest.fixture(scope="module")
def again(tmp_path_factory) -> Path:
    """A store in which the same clips were encoded now."""
    place = tmp_path_factory.mktemp("again")
    encoded("parquet", place)
    return place


def facts(place: Path) -> dict[str, Any]:
    return json.loads((place / "encode" / "facts.json").read_text("utf-8"))  # type: ignore[no-any-return]


def rows(place: Path, name: str, row_type: type[R]) -> list[R]:
    return read_rows(place / "encode" / f"{name}.parquet", row_type)


def shelved(place: Path, pool: str, key: str) -> np.ndarray:
    """The values of one item."""
    shelf = Shelf(place / "shared" / pool, "hdf5" if list((place / "shared" / pool).glob("*.h5")) else "parquet")
    return shelf.read(shelf.locate([key])[key])


def test_a_training_from_the_cache_has_the_losses_it_always_had(cached, denoiser_alone, tmp_path):
    work = Workspace(directory=tmp_path, shared=cached / "shared", resources=Resources(device="cpu"))
    artifact = Artifact(stage="encode", fingerprint="cached", directory=cached / "encode", facts=facts(cached))

    train(Inputs(artifacts={"encode": artifact}, weights=denoiser_alone), PARAMS, work)

    losses = [row.loss for row in read_rows(tmp_path / "steps.parquet", StepRow)]
    np.testing.assert_allclose(losses, LOSSES, rtol=1e-5, atol=0)


def test_encoding_the_same_clips_again_gives_the_cached_latents(cached, again):
    before, now = (rows(place, "manifest", EncodedClip) for place in (cached, again))
    # Shards are named after what they hold and then their format; checksums follow the last bit.
    assert [replace(row, checksum="", shard=Path(row.shard).stem) for row in before] == [
        replace(row, checksum="", shard=Path(row.shard).stem) for row in now
    ]
    for key in [facts(cached)["silence"]["item_key"], *(row.item_key for row in before)]:
        ours, theirs = (shelved(place, "latents", key) for place in (cached, again))
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)


def test_embedding_the_same_prompts_again_gives_the_cached_embeddings(cached, again):
    before, now = (rows(place, "prompts", PromptRow) for place in (cached, again))
    assert [(row.prompt, row.prompt_key, row.num_tokens) for row in before] == [
        (row.prompt, row.prompt_key, row.num_tokens) for row in now
    ]
    for row in before:
        ours, theirs = (shelved(place, "prompts", row.prompt_key) for place in (cached, again))
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
