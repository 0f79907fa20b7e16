"""Which files in the output folder are replaced with a warning, and which without."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cache.errors import ArtifactDamaged
from cache.fingerprint import digest_bytes
from cache.receipt import FileEntry, Receipt
from pipeline.errors import RecipeError
from pipeline.execution.outputs import check_output, continues, copy_outputs
from pipeline.execution.runner import copied_to
from pipeline.plan.stage_run import StageRun, State
from pipeline.request.recipe import read_recipe
from stages.train.stage import STAGE, TrainParams

PARAMS = TrainParams(model="tiny-base", number_of_steps=10, pre_encode=True)


def config(made_from: str = "latents", weights: str = "a", **params) -> dict:
    """A config.json as train writes it, with the entries that identify a run."""
    dataset = {"artifact": {"stage": "encode", "fingerprint": made_from}}
    others = {"weights_digests": {"transformer": weights}, "dataset": dataset, "times": params.pop("times", "then")}
    return json.loads(json.dumps(asdict(replace(PARAMS, **params)) | others))


def run_of(**params) -> StageRun:
    nothing = {"inputs": {}, "components": {}, "fingerprint": "f", "identity": "i", "state": State.HIT, "reason": ""}
    return StageRun(stage=STAGE, params=replace(PARAMS, **params), **nothing)


@pytest.mark.parametrize("changed", [{}, {"number_of_steps": 20}, {"export_precision": "fp32"}, {"times": "now"}])
def test_a_longer_training_continues_the_same_run(changed):
    params = {name: value for name, value in changed.items() if name != "times"}
    assert continues(config(), config(**changed), run_of(**params))


@pytest.mark.parametrize(
    "changed", [{"number_of_steps": 9}, {"seed": 1}, {"made_from": "other"}, {"weights": "b"}, {"include": ("a",)}]
)
def test_a_shorter_or_another_training_does_not(changed):
    params = {name: value for name, value in changed.items() if name not in ("made_from", "weights")}
    assert not continues(config(), config(**changed), run_of(**params))


def test_a_schedule_that_depends_on_the_steps_is_another_training_with_more_of_them():
    before, now = (config(schedule="cosine", number_of_steps=steps) for steps in (10, 20))
    assert not continues(before, now, run_of(schedule="cosine", number_of_steps=20))


def artifact_of(root: Path, adapter: bytes, found: dict) -> tuple[Path, Receipt]:
    """The folder and the receipt of a training."""
    directory = root / "artifact"
    directory.mkdir(exist_ok=True)
    contents = {"adapter.safetensors": adapter, "config.json": json.dumps(found).encode()}
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    files = [FileEntry(name=name, num_bytes=len(one), sha256=digest_bytes(one)) for name, one in contents.items()]
    return directory, Receipt(stage="train", fingerprint="f", identity="i", version=1, files=tuple(files))


def copy(root: Path, found: dict, directory: Path, receipt: Receipt, said: list[str]) -> tuple[Path, ...]:
    recipe = read_recipe("clips.zip", {"model": "tiny-base", "output": str(root / "output")})
    params = {name: value for name, value in found.items() if name in asdict(PARAMS)}
    return copy_outputs(run_of(**params), directory, receipt, recipe, said.append)


def copied(root: Path, adapter: bytes, found: dict) -> list[str]:
    """Lines said when a training's files are copied."""
    said: list[str] = []
    files = copy(root, found, *artifact_of(root, adapter, found), said)
    assert [file.read_bytes() for file in files] == [adapter, json.dumps(found).encode()]
    return said


@pytest.mark.parametrize("name", ["adapter.safetensors", "config.json"])
def test_a_file_that_was_damaged_in_the_store_is_not_handed_out(tmp_path, name):
    directory, receipt = artifact_of(tmp_path, b"an adapter", config())
    content = bytearray((directory / name).read_bytes())
    content[5] ^= 1
    (directory / name).write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=f"{name} has other bytes"):
        copy(tmp_path, config(), directory, receipt, [])
    assert not (tmp_path / "output").exists(), "not even the undamaged one of the two"


def test_replacing_another_training_gives_a_warning_and_replacing_the_same_run_does_not(tmp_path):
    assert copied(tmp_path, b"first", config()) == []
    assert copied(tmp_path, b"longer", config(number_of_steps=20)) == []
    assert copied(tmp_path, b"longer", config(number_of_steps=20, times="now")) == []
    said = copied(tmp_path, b"other", config(number_of_steps=20, seed=7))
    assert [line.split(" is ")[0] for line in said] == [
        str(tmp_path / "output" / name) for name in ("clips.safetensors", "clips.json")
    ]


@pytest.mark.parametrize("content", ["[]", "not JSON", "{}", '{"number_of_steps": 5, "dataset": null}'])
def test_replacing_files_that_are_not_from_a_training_gives_a_warning(tmp_path, content):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "clips.json").write_text(content)
    assert "clips.json is replaced" in copied(tmp_path, b"first", config())[0]


def recipe_named(output: Path, name: str):
    return read_recipe("clips.zip", {"model": "tiny-base", "name": name, "output": str(output)})


def test_the_sidecar_of_a_clip_in_the_output_folder_is_not_replaced(tmp_path):
    (tmp_path / "kick.json").write_text('{"caption": "a kick"}')
    with pytest.raises(RecipeError, match=r"kick\.json was not written by a training: give another --name"):
        check_output(recipe_named(tmp_path, "kick"))


@pytest.mark.parametrize("content", [json.dumps(config()), '{"number_of_st'])
def test_the_config_of_a_training_may_be_replaced_even_a_damaged_one(tmp_path, content):
    (tmp_path / "kick.json").write_text(content)
    check_output(recipe_named(tmp_path, "kick"))


def test_room_for_the_copy_is_looked_for_in_the_output_folder_unless_it_is_there(tmp_path):
    recipe = recipe_named(tmp_path, "mine")
    assert copied_to("train", recipe, None) == tmp_path
    (tmp_path / "mine.safetensors").write_bytes(b"")
    assert copied_to("train", recipe, None) is None


def test_room_for_an_export_is_looked_for_when_it_is_encoded(tmp_path):
    recipe = recipe_named(tmp_path, "mine")
    found = [copied_to(stage, recipe, tmp_path / "exported") for stage in ("ingest", "encode")]
    assert found == [None, tmp_path / "exported"]
