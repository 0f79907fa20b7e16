"""The parts of tiny-base become a folder that the product loads, or nothing."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.errors import WeightsMismatch
from stages.model_config import TEXT_ENCODER_FOLDER
from stages.models.bundled_weights import digest_lines
from stages.models.families import tiny
from stages.models.load_weights import AUTOENCODER
from stages.pretrain.assemble import assemble, model_config

SECTIONS = {name: tiny.model_config("tiny-base")["model"][name] for name in ("conditioning", "diffusion")}


@pytest.fixture
def parts(tmp_path) -> Path:
    """The weights that ship, taken apart again: `autoencoder.safetensors` and `transformer/`."""
    tensors = load_file(tiny.FOLDER / "model.safetensors")
    folder = tmp_path / "transformer"
    (folder / "text_encoder").mkdir(parents=True)
    inside = {name.removeprefix(AUTOENCODER): one for name, one in tensors.items() if name.startswith(AUTOENCODER)}
    save_file(inside, tmp_path / "autoencoder.safetensors")
    others = {name: one for name, one in tensors.items() if not name.startswith(AUTOENCODER)}
    save_file(others, folder / "transformer.safetensors")
    (folder / "transformer.json").write_text(json.dumps({"config": SECTIONS}), "utf-8")
    for file in (tiny.FOLDER / TEXT_ENCODER_FOLDER).iterdir():
        (folder / "text_encoder" / file.name).write_bytes(file.read_bytes())
    return tmp_path


def assembled(parts: Path) -> Path:
    assemble(parts / "autoencoder.safetensors", parts / "transformer", parts / "made")
    return parts / "made"


def test_the_parts_of_the_shipped_model_give_its_bytes_again(parts):
    assert digest_lines(assembled(parts)) == digest_lines(tiny.FOLDER)


def test_the_sizes_of_the_shipped_model_are_those_that_are_trained():
    assert model_config(SECTIONS) == tiny.model_config("tiny-base")


def test_whoever_runs_the_program_may_read_the_files(parts):
    files = [path for path in assembled(parts).rglob("*") if path.is_file()]
    assert [path for path in files if not path.stat().st_mode & stat.S_IROTH] == []


def damaged(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_parts_that_do_not_fit_write_nothing(parts):
    damaged(parts / "autoencoder.safetensors", lambda tensors: tensors.pop("bottleneck.bias"))
    with pytest.raises(WeightsMismatch, match=r"bottleneck\.bias"):
        assembled(parts)
    assert not (parts / "made").exists()


def test_values_beyond_half_precision_are_refused_by_the_tensors_name(parts):
    file = parts / "transformer" / "transformer.safetensors"
    damaged(file, lambda tensors: tensors["model.model.transformer.memory_tokens"].fill_(torch.inf))
    with pytest.raises(ValueError, match="memory_tokens"):
        assembled(parts)
