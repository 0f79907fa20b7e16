"""The name of the output files: no file of another training is replaced unless that is asked for."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cache.errors import ArtifactDamaged
from cache.fingerprint import digest_bytes
from cache.receipt import FileEntry, Receipt
from cache.store import Store
from pipeline.errors import RecipeError
from pipeline.execution.command_line import command_line
from pipeline.execution.output_name import OutputName, output_name
from pipeline.execution.outputs import check_output, copy_outputs, hand_out
from pipeline.execution.runner import copied_to
from pipeline.plan.stage_run import StageRun, State
from pipeline.request.recipe import Recipe, read_recipe
from stages.train.stage import STAGE, TrainParams

PARAMS = TrainParams(model="tiny-base", number_of_steps=10, pre_encode=True)


def config(**changes) -> dict:
    """A config.json as train writes it, with the entries that say whose it is."""
    return json.loads(json.dumps(asdict(PARAMS))) | {"identity": "i", "times": "then"} | changes


def run_of(**params) -> StageRun:
    nothing = {"inputs": {}, "components": {}, "fingerprint": "f", "identity": "i", "state": State.HIT, "reason": ""}
    return StageRun(stage=STAGE, params=replace(PARAMS, **params), **nothing)


def recipe_named(output: Path, name: str, **more):
    return read_recipe("clips.zip", {"model": "tiny-base", "name": name, "output": str(output), **more})


def finished(folder: Path, name: str, **changes) -> None:
    """Files as a finished training leaves them."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(config(**changes)))
    (folder / f"{name}.safetensors").write_bytes(b"an adapter")


def exported(folder: Path, suffix: str, identity: str) -> None:
    """An adapter that a training exported on its way."""
    save_file({"x": np.zeros(1, np.float32)}, folder / f"mine{suffix}.safetensors", {"identity": identity})


def named(folder: Path, **flags) -> str:
    return output_name(recipe_named(folder, "mine", **flags), run_of()).name


def test_a_name_that_nothing_has_is_taken_without_a_word(tmp_path):
    assert output_name(recipe_named(tmp_path / "new", "mine"), run_of()) == OutputName("mine")


@pytest.mark.parametrize("changed", [{}, {"number_of_steps": 5}, {"export_precision": "fp32"}, {"times": "now"}])
def test_files_of_the_same_training_with_no_more_steps_are_its_own(tmp_path, changed):
    finished(tmp_path, "mine", **changed)
    assert named(tmp_path) == "mine"


@pytest.mark.parametrize("changed", [{"number_of_steps": 11}, {"identity": "another"}, {"identity": None}])
def test_files_of_another_or_a_longer_training_are_kept_and_a_free_name_is_taken(tmp_path, changed):
    finished(tmp_path, "mine", **changed)
    found = output_name(recipe_named(tmp_path, "mine"), run_of())
    assert found.name == "mine-2"
    assert found.note.startswith(f"{tmp_path / 'mine.safetensors'} is from another training: the files of this one")


def test_the_same_training_finds_the_name_again_that_it_took(tmp_path):
    finished(tmp_path, "mine", identity="another")
    finished(tmp_path, "mine-2", identity="a third")
    finished(tmp_path, "mine-3")
    assert named(tmp_path) == "mine-3"


@pytest.mark.parametrize("suffix", [".safetensors", "_ema.safetensors"])
def test_an_adapter_without_a_config_is_kept(tmp_path, suffix):
    (tmp_path / f"mine{suffix}").write_bytes(b"from somewhere")
    assert named(tmp_path) == "mine-2"


@pytest.mark.parametrize("content", ["not JSON", "[]", '{"number_of_steps": "many"}'])
def test_an_adapter_with_a_damaged_config_is_kept(tmp_path, content):
    finished(tmp_path, "mine")
    (tmp_path / "mine.json").write_text(content)
    assert named(tmp_path) == "mine-2"


@pytest.mark.parametrize("suffix", ["_000500", "_000500_ema", "_000123_stopped"])
@pytest.mark.parametrize(("identity", "name"), [("i", "mine"), ("another", "mine-2")])
def test_exports_of_another_training_are_kept_too(tmp_path, suffix, identity, name):
    exported(tmp_path, suffix, identity)
    assert named(tmp_path) == name


def test_files_that_only_begin_with_the_name_are_in_nobodys_way(tmp_path):
    for other in ("mine_b.safetensors", "mine_12.safetensors", "mine-2.txt", "[m]ine_000500.safetensors"):
        (tmp_path / other).write_bytes(b"")
    assert named(tmp_path) == "mine"


def test_overwrite_replaces_and_says_so_before_anything_runs(tmp_path):
    finished(tmp_path, "mine", identity="another")
    found = output_name(recipe_named(tmp_path, "mine", overwrite=True), run_of())
    assert (found.name, "is replaced (--overwrite)" in found.note) == ("mine", True)


def kept(recipe: Recipe, adapter: bytes, command: str) -> None:
    """A training of the identity `earlier` in the store, asked for by a command."""
    scratch = recipe.store / "scratch" / "made"
    scratch.mkdir(parents=True)
    (scratch / "adapter.safetensors").write_bytes(adapter)
    asked = {"request": {"command": command}}
    receipt = Receipt(stage="train", fingerprint="e" * 64, identity="earlier", version=1, environment=asked)
    Store(recipe.store).commit("train", receipt.fingerprint, scratch, receipt)


@pytest.mark.parametrize(
    ("in_store", "command", "name"),
    [
        (b"an adapter", None, "mine"),
        (b"another", None, "mine-2"),
        (b"an adapter", "sa3-trainer run other.zip", "mine-2"),
    ],
)
def test_what_the_same_command_made_of_its_data_before_is_replaced_if_the_store_holds_it(
    tmp_path, in_store, command, name
):
    recipe = recipe_named(tmp_path / "output", "mine", store=str(tmp_path / "store"))
    finished(recipe.output, "mine", identity="earlier")
    kept(recipe, in_store, command or command_line(recipe, "run"))
    assert output_name(recipe, run_of()).name == name


def test_adapters_exported_on_the_way_are_kept_whatever_command_made_them(tmp_path):
    recipe = recipe_named(tmp_path / "output", "mine", store=str(tmp_path / "store"))
    finished(recipe.output, "mine", identity="earlier")
    exported(recipe.output, "_000500", "earlier")
    kept(recipe, b"an adapter", command_line(recipe, "run"))
    assert output_name(recipe, run_of()).name == "mine-2"


def artifact_of(root: Path, adapter: bytes, found: dict) -> tuple[Path, Receipt]:
    """The folder and the receipt of a training."""
    directory = root / "artifact"
    directory.mkdir(exist_ok=True)
    contents = {"adapter.safetensors": adapter, "config.json": json.dumps(found).encode()}
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    files = [FileEntry(name=name, num_bytes=len(one), sha256=digest_bytes(one)) for name, one in contents.items()]
    return directory, Receipt(stage="train", fingerprint="f", identity="i", version=1, files=tuple(files))


def test_the_files_of_a_training_are_copied_under_its_name(tmp_path):
    files = copy_outputs(
        *artifact_of(tmp_path, b"an adapter", config()), recipe_named(tmp_path / "output", "mine"), "mine", print
    )
    assert [file.name for file in files] == ["mine.safetensors", "mine.json"]
    assert files[0].read_bytes() == b"an adapter"


@pytest.mark.parametrize("name", ["adapter.safetensors", "config.json"])
def test_a_file_that_was_damaged_in_the_store_is_not_handed_out(tmp_path, name):
    directory, receipt = artifact_of(tmp_path, b"an adapter", config())
    content = bytearray((directory / name).read_bytes())
    content[5] ^= 1
    (directory / name).write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=f"{name} has other bytes"):
        copy_outputs(directory, receipt, recipe_named(tmp_path / "output", "mine"), "mine", print)
    assert not (tmp_path / "output").exists(), "not even the undamaged one of the two"


def test_an_adapter_on_the_way_that_cannot_be_copied_is_said_and_ends_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"an adapter")
    said: list[str] = []
    hand_out(tmp_path / "file", tmp_path / "file" / "below.safetensors", said.append)
    assert "was not written" in said[0] and "saved in the store" in said[0]


def test_the_sidecar_of_a_clip_in_the_output_folder_is_not_replaced(tmp_path):
    (tmp_path / "kick.json").write_text('{"caption": "a kick"}')
    with pytest.raises(RecipeError, match=r"kick\.json was not written by a training: give another --name"):
        check_output(recipe_named(tmp_path, "kick"))


@pytest.mark.parametrize("content", [json.dumps(config()), '{"number_of_st'])
def test_the_config_of_a_training_may_be_replaced_even_a_damaged_one(tmp_path, content):
    (tmp_path / "kick.json").write_text(content)
    check_output(recipe_named(tmp_path, "kick"))


def test_room_for_the_copy_is_looked_for_in_the_output_folder_unless_it_is_there(tmp_path):
    assert copied_to("train", tmp_path, "mine", None) == tmp_path
    (tmp_path / "mine.safetensors").write_bytes(b"")
    assert copied_to("train", tmp_path, "mine", None) is None


def test_room_for_an_export_is_looked_for_when_it_is_encoded(tmp_path):
    found = [copied_to(stage, tmp_path, "mine", tmp_path / "exported") for stage in ("ingest", "encode")]
    assert found == [None, tmp_path / "exported"]
