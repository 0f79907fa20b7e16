"""The clips are checked before weights are downloaded, and without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.execution.runner import run_until
from pipeline.report import Report
from pipeline.request import resolve
from pipeline.request.recipe import read_recipe
from stages.errors import DatasetFaults, WeightsNotFound
from tests.small_datasets import clips, folder

FETCHED = []


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """A machine without the weights, whose network gives none."""
    FETCHED.clear()

    def hub_folder(spec, *, download):
        if download:
            FETCHED.append(spec.name)
            raise WeightsNotFound(spec.repo, "there is no network here", "Go online.")

    monkeypatch.setattr(resolve, "hub_folder", hub_folder)


def request(root: Path, **files: bytes):
    data = folder(root / "clips", {**clips("a", "b"), **files})
    folders = {"store": str(root / "artifacts"), "output": str(root / "output")}
    return read_recipe(str(data), {"model": "medium-base", "workers": 1, **folders})


def test_a_dataset_with_faults_is_refused_before_any_weight_is_fetched(tmp_path):
    recipe = request(tmp_path)
    (tmp_path / "clips" / "a.txt").unlink()
    with pytest.raises(DatasetFaults):
        run_until("train", recipe, Report())
    assert FETCHED == []


def test_a_sound_dataset_is_prepared_when_the_weights_cannot_be_had_and_not_again(tmp_path, capsys):
    recipe = request(tmp_path)
    for checked in (True, False):
        with pytest.raises(WeightsNotFound):
            run_until("train", recipe, Report())
        said = capsys.readouterr().err
        assert ("checked before the weights of medium-base are downloaded" in said) == checked
        assert ("ingest  done    2 clips" in said) == checked
    assert FETCHED == ["medium-base"] * 2


def test_ingest_asks_for_no_weights(tmp_path):
    assert run_until("ingest", request(tmp_path), Report()).artifacts["ingest"].facts["num_clips"] == 2
    assert FETCHED == []
