"""Adapters of other tools: the `.ckpt` of the reference's trainer, baked norms, files without settings."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stages.adapters.adapter_file import read
from stages.adapters.adapter_header import kinds_of, read_adapter_header
from stages.errors import AdapterMismatch
from stages.records import AdapterSpec
from tests.test_adapters_adapter_file import LAYER, faults_of, foreign, some_tensors

CONFIG: dict[str, Any] = {
    **{"rank": 2, "alpha": 3.0, "adapter_type": "dora-rows", "dropout": 0.0},
    **{"include": ["layers.[0-1]"], "exclude": None},
}


def archive(path: Path, saved: object = None, **options: Any) -> Path:
    """A `.ckpt` as the reference's trainer writes it."""
    whole = {"state_dict": some_tensors(), "lora_config": CONFIG}
    torch.save(whole if saved is None else saved, path, **options)
    return path


def test_a_checkpoint_of_the_reference_gives_its_tensors_and_settings(tmp_path):
    found = read(archive(tmp_path / "a.ckpt"))
    assert found.spec == AdapterSpec(kind="dora-rows", rank=2, alpha=3.0, include=("layers.[0-1]",))
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in some_tensors().items())
    assert found.tensors.keys() == some_tensors().keys()


def test_the_container_is_told_by_its_bytes_and_not_by_its_name(tmp_path):
    assert read(archive(tmp_path / "a.safetensors")).spec.rank == 2
    assert read(foreign(tmp_path / "b.ckpt", CONFIG)).spec.rank == 2


@pytest.mark.parametrize("wrap", [torch.nn.Parameter, lambda tensor: tensor.t().contiguous().t(), torch.Tensor.half])
def test_parameters_views_and_half_precision_are_tensors_too(tmp_path, wrap):
    saved = {"state_dict": {key: wrap(tensor) for key, tensor in some_tensors().items()}, "lora_config": CONFIG}
    found = read(archive(tmp_path / "a.ckpt", saved))
    assert all(torch.allclose(found.tensors[key], some_tensors()[key], atol=1e-2) for key in some_tensors())


def test_its_header_has_shapes_and_settings_without_torch(tmp_path):
    header = read_adapter_header(archive(tmp_path / "a.ckpt"))
    assert header.config == CONFIG
    assert header.shapes == {key: tuple(tensor.shape) for key, tensor in some_tensors().items()}


class Malicious:
    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self):
        return os.mkdir, (str(self.sign),)


@pytest.mark.parametrize("place", ["state_dict", "lora_config", "callbacks"])
def test_a_checkpoint_that_would_run_code_is_refused_in_words_and_runs_nothing(tmp_path, place):
    saved = {"state_dict": some_tensors(), "lora_config": dict(CONFIG), "callbacks": {}}
    saved[place]["x"] = Malicious(tmp_path / "ran")
    assert "calls for posix.mkdir, which is no part of an adapter" in faults_of(archive(tmp_path / "a.ckpt", saved))
    assert not (tmp_path / "ran").exists()


def test_a_tensor_larger_than_what_is_stored_of_it_is_refused(tmp_path):
    saved = {"state_dict": {LAYER + "lora_A": torch.zeros(1).expand(2, 10**12)}, "lora_config": CONFIG}
    assert "larger than what is stored of it" in faults_of(archive(tmp_path / "a.ckpt", saved))


@pytest.mark.parametrize("part", [0.3, 0.7, 0.99])
def test_a_truncated_checkpoint_is_refused_in_words(tmp_path, part):
    whole = archive(tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: int(len(whole) * part)])
    assert "damaged" in faults_of(tmp_path / "cut.ckpt")


def test_any_damage_to_a_checkpoint_is_words_or_harmless(tmp_path):
    whole = archive(tmp_path / "a.ckpt").read_bytes()
    for place in range(0, len(whole), 97):
        (tmp_path / "b.ckpt").write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            read(tmp_path / "b.ckpt", unstated=AdapterSpec(kind="lora", rank=2, alpha=2.0))
        except AdapterMismatch as error:
            assert error.differences


def test_a_compressed_checkpoint_is_no_file_of_torch(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", pickle.dumps({"state_dict": {}}))
    assert "compressed" in faults_of(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("saved", "what"),
    [
        ([1, 2], "no state_dict"),
        ({"lora": some_tensors(), "config": CONFIG}, "it holds no state_dict, but config, lora"),
        ({"state_dict": {"epoch": 3}, "lora_config": CONFIG}, "no tensors in its state_dict: epoch"),
        ({"state_dict": some_tensors(), "lora_config": [1]}, "not a JSON object"),
        ({"state_dict": some_tensors(), "lora_config": CONFIG | {"rank": {"a": 1}}}, "no plain value as rank"),
        ({"state_dict": some_tensors(), "lora_config": CONFIG | {"rank": 3}}, "says rank 3"),
        ({"state_dict": some_tensors()}, "no lora_config"),
        (some_tensors(), "no lora_config"),
    ],
)
def test_a_checkpoint_of_another_content_is_refused_in_words(tmp_path, saved, what):
    assert what in faults_of(archive(tmp_path / "a.ckpt", saved))


def test_a_zip_and_an_old_pickle_are_refused_in_words(tmp_path):
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as file:
        file.writestr("a.txt", "drums")
    assert "not one that torch.save writes" in faults_of(tmp_path / "clips.zip")
    old = archive(tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert "it is a pickle, as torch.save wrote before torch 1.6" in faults_of(old)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 34\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Sign in</html>", "it is a web page"),
        (b'{"error": "Invalid username or password."}', "it is JSON"),
        ((1000).to_bytes(8, "little") + b'{"a": {"dtype"', "14 of 1,000 bytes of its header are there"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "neither a safetensors file nor a .ckpt"),
    ],
)
def test_a_file_that_is_no_adapter_is_called_what_it_is(tmp_path, content, what):
    for name in ("a.safetensors", "a.ckpt"):
        (tmp_path / name).write_bytes(content)
        assert what in faults_of(tmp_path / name)


def test_what_a_trainer_keeps_beside_the_tensors_is_passed_over(tmp_path):
    beside = {"dtype": torch.bfloat16, "device": torch.device("cpu"), "seen": {1, 2}, "optimizer": [torch.zeros(3)]}
    found = read(archive(tmp_path / "a.ckpt", {"state_dict": some_tensors(), "lora_config": CONFIG, **beside}))
    assert found.tensors.keys() == some_tensors().keys()


def test_settings_in_a_checkpoint_may_be_json(tmp_path):
    saved = {"state_dict": some_tensors(), "lora_config": json.dumps(CONFIG)}
    assert read(archive(tmp_path / "a.ckpt", saved)).spec.alpha == 3.0


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_every_floating_point_type_is_read(tmp_path, dtype):
    tensors = {key: tensor.to(dtype) for key, tensor in some_tensors().items()}
    saved = {"state_dict": tensors, "lora_config": CONFIG}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_config": json.dumps(CONFIG)})
    for file in (tmp_path / "a.safetensors", archive(tmp_path / "a.ckpt", saved)):
        found = read(file).tensors
        assert all(torch.equal(found[key], tensors[key].float()) for key in tensors)


BAKED = LAYER + "baked_vnorm_row"


def test_baked_norms_are_checked_and_left_out(tmp_path):
    found = read(foreign(tmp_path / "a.safetensors", CONFIG, {**some_tensors(), BAKED: torch.ones(5)}))
    assert found.left_out == (BAKED,)
    assert found.tensors.keys() == some_tensors().keys()


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ({BAKED: torch.ones(4)}, f"misshapen: {BAKED} has 4 norms, its layer has 5 rows"),
        ({BAKED: -torch.ones(5)}, "negative norms"),
        ({BAKED: torch.full((5,), torch.nan)}, "not finite"),
        ({BAKED.replace("layers.0", "layers.9"): torch.ones(5)}, "baked norms without an adapter"),
    ],
)
def test_baked_norms_that_cannot_be_norms_are_refused(tmp_path, extra, what):
    assert what in faults_of(foreign(tmp_path / "a.safetensors", CONFIG, {**some_tensors(), **extra}))


def test_a_file_without_settings_is_taken_for_what_is_said_of_it(tmp_path):
    save_file(some_tensors(), tmp_path / "bare.safetensors")
    said = AdapterSpec(kind="dora-rows", rank=2, alpha=8.0)
    assert read(tmp_path / "bare.safetensors", unstated=said).spec == said


def test_what_the_file_states_goes_before_what_is_said_of_it(tmp_path):
    said = AdapterSpec(kind="lora", rank=9, alpha=9.0)
    assert read(foreign(tmp_path / "a.safetensors", CONFIG), unstated=said).spec.kind == "dora-rows"


@pytest.mark.parametrize(
    ("leaves", "kinds"),
    [
        ({"lora_A": (2, 7), "lora_B": (5, 2)}, ["lora"]),
        ({"lora_A": (2, 7), "lora_B": (5, 2), "magnitude": (5,)}, ["dora-rows"]),
        ({"lora_A": (2, 7), "lora_B": (5, 2), "magnitude": (1, 7)}, ["dora-cols"]),
        ({"lora_A": (2, 5), "lora_B": (5, 2), "magnitude": (5,)}, ["dora-cols", "dora-rows"]),
        ({"M_xs": (2, 2), "magnitude": (5,)}, ["dora-cols-xs", "dora-rows-xs"]),
        ({"M_xs": (2, 2), "magnitude_r": (5,), "magnitude_c": (7,)}, ["bora-xs"]),
        ({"lora_A": (2, 7)}, []),
    ],
)
def test_kinds_are_told_by_names_and_shapes_where_these_tell(leaves, kinds):
    assert sorted(kinds_of({LAYER + leaf: shape for leaf, shape in leaves.items()})) == kinds


def test_settings_that_are_not_plain_json_are_named(tmp_path):
    assert "not JSON" in faults_of(foreign(tmp_path / "a.safetensors", "{"))
    assert json.loads(read(foreign(tmp_path / "b.safetensors", CONFIG)).metadata["lora_config"]) == CONFIG
