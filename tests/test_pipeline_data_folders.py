"""The run's own store and output inside the data, and files beside the clips."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cache.files.folder_mark import OUTPUT_MARK, STORE_MARK
from cache.store import Store
from pipeline.errors import RecipeError
from pipeline.execution.data_folders import check_store_place, mark_folders
from pipeline.plan.plan import plan
from pipeline.request.notices import data_notices
from pipeline.request.recipe import Recipe, read_recipe
from pipeline.request.resolve import resolve_inputs
from tests.small_datasets import clips, folder


def request(data: str, **fields: object) -> Recipe:
    return read_recipe(data, {"model": "tiny-base", **fields})


def prepare_folders(recipe: Recipe) -> None:
    """As a run does before it looks at the data."""
    check_store_place(recipe)
    recipe.store.mkdir(exist_ok=True)
    recipe.output.mkdir(exist_ok=True)
    mark_folders(recipe, store=True, output=True)


def fingerprints(recipe: Recipe) -> list[str | None]:
    prepare_folders(recipe)
    return [run.fingerprint for run in plan(recipe, Store(recipe.store), resolve_inputs(recipe, fetch=True)).runs]


def test_store_and_output_inside_the_data_are_no_data(tmp_path, monkeypatch):
    monkeypatch.chdir(folder(tmp_path / "clips", clips("a")))
    before = fingerprints(request("."))
    folder(Path("artifacts"), {"shared/prepared/x.wav": b"x", "ingest/0/b.txt": b"x"})
    folder(Path("output"), {"clips.safetensors": b"x", "a.json": b"{}", "preview.wav": b"x"})
    assert fingerprints(request(".")) == before
    said = list(data_notices(resolve_inputs(request("."), fetch=False).source))
    assert [line.split(":")[1].strip() for line in said] == ["output/", "artifacts/"]


def test_a_stray_file_changes_no_stage_of_the_plan_and_is_said(tmp_path):
    data, place = folder(tmp_path / "clips", clips("a")), {"store": str(tmp_path / "s"), "output": str(tmp_path / "o")}
    before = fingerprints(request(str(data), **place))
    (data / "README.md").write_text("my notes")
    assert fingerprints(request(str(data), **place)) == before
    (line,) = data_notices(resolve_inputs(request(str(data), **place), fetch=False).source)
    assert line.startswith("warning: README.md: by its name it is neither audio nor a caption")


def test_an_output_folder_that_held_files_before_is_not_marked_and_its_clips_stay_clips(tmp_path):
    data = folder(tmp_path / "clips", clips("a", "drums/b"))
    asked = request(str(data), store=str(data / "artifacts"), output=str(data / "drums"))
    prepare_folders(asked)
    assert not (data / "drums" / OUTPUT_MARK).exists()
    assert "drums/b.wav" in [member.name for member in resolve_inputs(asked, fetch=True).source.members]


@pytest.mark.parametrize("place", [".", "drums"])
def test_a_store_among_the_clips_themselves_is_refused_with_a_place_that_would_do(tmp_path, monkeypatch, place):
    monkeypatch.chdir(folder(tmp_path / "clips", clips("a", "drums/b")))
    with pytest.raises(RecipeError, match=f"store.*such as {os.path.normpath(place + '/artifacts')}"):
        prepare_folders(request(".", store=place))
    assert not Path(place, STORE_MARK).exists()
    prepare_folders(request(".", store=f"{place}/artifacts"))
    assert Path(place, "artifacts", STORE_MARK).exists()


def test_a_store_of_an_earlier_version_inside_the_data_is_used_and_marked(tmp_path):
    data = folder(tmp_path / "clips", {**clips("a"), "artifacts/digests.sqlite": b"", "artifacts/shared/x": b""})
    prepare_folders(request(str(data), store=str(data / "artifacts")))
    assert (data / "artifacts" / STORE_MARK).exists()
