"""Components of a checkpoint folder are named by digests of their content, without loading them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.errors import WeightsNotFound
from stages.model_config import TEXT_ENCODER_FOLDER
from stages.models.checkpoint_folder import open_folder, tensor_shapes
from tests.small_networks import TINY as FAMILY

FILES = {"model.safetensors", "model_config.json", TEXT_ENCODER_FOLDER}


@pytest.fixture
def folder(tmp_path) -> Path:
    def others(parent: str, names: list[str]) -> set[str]:
        return {*names} - FILES if Path(parent) == FAMILY else set()

    return Path(shutil.copytree(FAMILY, tmp_path / "copy", ignore=others))


def digests(folder: Path) -> dict[str, str]:
    return dict(open_folder("tiny-base", folder).digests)


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def rewrite(file: Path, **options) -> None:
    """Save the tensors again, with a change."""
    tensors = load_file(file)
    change = options.pop("change", None)
    if change:
        change(tensors)
    save_file(tensors, file, **options)


def test_the_order_of_tensors_in_the_file_changes_no_digest(folder):
    before = digests(folder)
    rewrite(folder / "model.safetensors", metadata={"written": "again"})
    assert digests(folder) == before


@pytest.mark.parametrize(
    ("tensor", "component"),
    [
        ("model.model.transformer.project_in.weight", "transformer"),
        ("pretransform.model.bottleneck.bias", "autoencoder"),
        ("conditioner.conditioners.prompt.padding_embedding", "conditioner"),
    ],
)
def test_one_changed_value_changes_the_digest_of_its_component_only(folder, tensor, component):
    before = digests(folder)
    rewrite(folder / "model.safetensors", change=lambda tensors: tensors[tensor].view(-1)[0].add_(1e-6))
    assert changed(before, digests(folder)) == {component}


def test_a_changed_config_changes_the_digest_of_the_component_it_shapes(folder):
    before = digests(folder)
    config = json.loads((folder / "model_config.json").read_text())
    config["model"]["diffusion"]["config"]["num_heads"] = 4
    (folder / "model_config.json").write_text(json.dumps(config))
    assert changed(before, digests(folder)) == {"transformer"}


def test_the_hub_repository_of_the_text_encoder_changes_no_digest(folder):
    before = digests(folder)
    config = json.loads((folder / "model_config.json").read_text())
    config["model"]["conditioning"]["configs"][0]["config"]["repo_id"] = "elsewhere/else"
    (folder / "model_config.json").write_text(json.dumps(config))
    assert digests(folder) == before


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json"])
def test_another_tokenizer_or_config_is_another_text_encoder(folder, file):
    before = digests(folder)
    path = folder / TEXT_ENCODER_FOLDER / file
    path.write_text(path.read_text() + "\n")
    assert changed(before, digests(folder)) == {"text_encoder"}


def test_the_encoder_has_the_same_digest_in_either_file_layout(folder):
    file = folder / TEXT_ENCODER_FOLDER / "model.safetensors"
    before = digests(folder)
    whole = {f"model.{name}": tensor for name, tensor in load_file(file).items()}
    save_file({**whole, "model.decoder.norm.weight": torch.zeros(3)}, file)
    assert digests(folder) == before


class MemoryCache:
    """A digest cache in memory."""

    def __init__(self):
        self.values = {}

    def get(self, path, what):
        return self.values.get((path, what))

    def put(self, path, what, value):
        self.values[path, what] = value


def test_cached_digests_are_not_computed_again(folder, monkeypatch):
    digest_cache = MemoryCache()
    first = open_folder("tiny-base", folder, digest_cache)
    monkeypatch.setattr("stages.models.checkpoint_folder._tensors_digest", lambda *args: pytest.fail("read again"))
    assert open_folder("tiny-base", folder, digest_cache).digests == first.digests


def test_shapes_come_from_the_header_alone(folder):
    shapes = tensor_shapes(folder / "model.safetensors")
    assert shapes["model.model.transformer.memory_tokens"] == (4, 80)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is not there"),
        (lambda folder: (folder / "model_config.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), "not a safetensors file"),
        (lambda folder: shorten(folder / "model.safetensors"), "it is cut short: [0-9,]+ of"),
        (lambda folder: lengthen(folder / "model.safetensors"), "1 bytes follow its tensors, so it is damaged"),
        (lambda folder: shutil.rmtree(folder / TEXT_ENCODER_FOLDER), "holds no .safetensors file"),
    ],
    ids=["no weights", "config is not JSON", "not safetensors", "cut short", "longer", "no text encoder"],
)
def test_an_incomplete_folder_is_an_error_that_names_the_file(folder, damage, says):
    damage(folder)
    with pytest.raises(WeightsNotFound, match=says):
        open_folder("tiny-base", folder)


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])
