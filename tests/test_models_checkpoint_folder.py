"""Components of a checkpoint folder are named by digests of their content, without loading them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cache.errors import WriteFailed
from stages.errors import WeightsNotFound
from stages.models.checkpoint_folder import open_folder, tensor_shapes
from stages.models.families import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / tiny.folder_name()
    tiny.make(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


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


def test_tiny_base_is_the_same_bytes_each_time(made, tmp_path):
    tiny.make(tmp_path / "again")
    files = [
        "model.safetensors",
        "model_config.json",
        f"{tiny.TEXT_FOLDER}/model.safetensors",
        f"{tiny.TEXT_FOLDER}/tokenizer.json",
    ]
    assert [(made / name).read_bytes() for name in files] == [
        (tmp_path / "again" / name).read_bytes() for name in files
    ]
    assert not list(tmp_path.glob("*.tmp"))


def test_weights_for_which_the_disk_has_no_room_are_an_error_and_leave_nothing_behind(tmp_path, monkeypatch):
    def full(file: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteFailed, match="could not be written: No space left on device"):
        tiny.make(tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_no_tensor_of_tiny_base_is_left_without_a_value(made):
    for file in (made / "model.safetensors", made / tiny.TEXT_FOLDER / "model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values())


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
    path = folder / tiny.TEXT_FOLDER / file
    path.write_text(path.read_text() + "\n")
    assert changed(before, digests(folder)) == {"text_encoder"}


def test_the_encoder_has_the_same_digest_in_either_file_layout(folder):
    file = folder / tiny.TEXT_FOLDER / "model.safetensors"
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
    assert shapes["model.model.transformer.memory_tokens"] == (8, 128)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is not there"),
        (lambda folder: (folder / "model_config.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), "not a safetensors file"),
        (lambda folder: shorten(folder / "model.safetensors"), "it is cut short: [0-9,]+ of"),
        (lambda folder: lengthen(folder / "model.safetensors"), "1 bytes follow its tensors, so it is damaged"),
        (lambda folder: shutil.rmtree(folder / tiny.TEXT_FOLDER), "holds no .safetensors file"),
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
