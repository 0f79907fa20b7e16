"""Training from an encode artifact in the source tree: pinned losses, without autoencoder and text encoder."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from cache.manifest import read_rows
from cache.shard_pool import ShardPool
from cache.shards import formats
from stages.contract import Artifact, Inputs, Resources, Weights, Workspace
from stages.models.checkpoint_folder import open_folder
from stages.records import EncodedClip, PromptRow
from stages.train.record.metrics import StepRow
from stages.train.run import train
from stages.train.stage import TrainParams
from tests.golden.make_cached_artifact import FAMILY, copied, encoded

R = TypeVar("R")
LOSSES = (1.3581036, 1.8492949, 1.0783024, 1.4362801, 1.1824910)
"""Losses of five steps with these params. Every draw comes from seeds through numpy, and all arithmetic is float32:
another machine, thread count or torch release changes the order of sums and no more, which moves a loss by less than
1e-6 of itself. A change of 1e-5 means that something else is computed."""
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
def cached(request, tmp_path_factory) -> Artifact:
    """The artifact in the source tree."""
    return copied(request.param, tmp_path_factory.mktemp(request.param))


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
def again(tmp_path_factory) -> Artifact:
    """The same clips, encoded now."""
    return encoded("parquet", tmp_path_factory.mktemp("again"))


def rows(artifact: Artifact, name: str, row_type: type[R]) -> list[R]:
    return read_rows(artifact.directory / f"{name}.parquet", row_type)


def shared(artifact: Artifact) -> Path:
    return artifact.directory.parent / "shared"


def shelved(artifact: Artifact, pool: str, key: str) -> np.ndarray:
    """The values of one item."""
    shard_pool = ShardPool(shared(artifact) / pool, artifact.facts["latent_format"])
    return shard_pool.read(shard_pool.locate([key])[key])


def test_a_training_from_stored_latents_has_the_pinned_losses(cached, denoiser_alone, tmp_path):
    work = Workspace(directory=tmp_path, shared=shared(cached), resources=Resources(device="cpu"))

    train(Inputs(artifacts={"encode": cached}, weights=denoiser_alone), PARAMS, work)

    losses = [row.loss for row in read_rows(tmp_path / "steps.parquet", StepRow)]
    np.testing.assert_allclose(losses, LOSSES, rtol=1e-5, atol=0)


def test_encoding_the_same_clips_again_gives_the_cached_latents(cached, again):
    before, now = (rows(each, "manifest", EncodedClip) for each in (cached, again))
    # Shards are named after what they hold and then their format; checksums follow the last bit.
    assert [replace(row, checksum="", shard=Path(row.shard).stem) for row in before] == [
        replace(row, checksum="", shard=Path(row.shard).stem) for row in now
    ]
    for key in [cached.facts["silence"]["item_key"], *(row.item_key for row in before)]:
        ours, theirs = (shelved(each, "latents", key) for each in (cached, again))
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)


def test_embedding_the_same_prompts_again_gives_the_cached_embeddings(cached, again):
    before, now = (rows(each, "prompts", PromptRow) for each in (cached, again))
    assert [(row.prompt, row.prompt_key, row.num_tokens) for row in before] == [
        (row.prompt, row.prompt_key, row.num_tokens) for row in now
    ]
    for row in before:
        ours, theirs = (shelved(each, "prompts", row.prompt_key) for each in (cached, again))
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
