"""How status, plan and gc treat what is left of a dataset that ingest refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cache import run_metadata
from cache.store import Store
from pipeline.cli import app
from stages.errors import StageError
from stages.ingest import run as ingesting
from tests import small_datasets

BAD = {**small_datasets.clips("a"), "b.txt": b"a caption without its audio"}


@pytest.fixture
def place(tmp_path) -> Path:
    """A dataset with one problem, which was refused."""
    small_datasets.folder(tmp_path / "clips", BAD)
    assert typed(tmp_path, "ingest", str(tmp_path / "clips"), "--model", "tiny-base", "--workers", "1").exit_code == 1
    return tmp_path


def typed(place: Path, *words: str):
    return CliRunner().invoke(app, [*words, "--store", str(place / "store")])


def refused(place: Path) -> run_metadata.UnfinishedRun:
    (run,) = run_metadata.unfinished_runs(Store(place / "store"))
    return run


def test_status_lists_it_as_refused_with_what_to_do(place):
    name = refused(place).name
    first = typed(place, "status").stdout.splitlines()[0]
    remedy = f"Fix the files and run again; `sa3-trainer evict {name[:18]} --store {place / 'store'}` removes it"
    assert first == f"refused {name}: its dataset has 1 problem. {remedy}"


def test_the_json_document_has_the_number_of_problems(place):
    (entry,) = json.loads(typed(place, "status", "--json").stdout)["unfinished"]
    assert entry["num_problems"] == 1


def test_a_plan_says_that_it_was_refused(place):
    shown = typed(place, "plan", str(place / "clips"), "--model", "tiny-base").stdout
    assert "ingest  new     refused earlier for 1 problem in its data" in shown


def test_gc_gives_the_command_that_removes_what_is_kept_for_it(place):
    run = refused(place)
    command = f"sa3-trainer evict {run.name[:18]} --store {place / 'store'}"
    kept = f"kept for refused {run.name}: `{command}` removes that run"
    assert f"shared files that no artifact references are {kept}" in typed(place, "gc").stdout


def test_that_command_removes_it(place):
    assert typed(place, "evict", refused(place).short_name).exit_code == 0
    assert not list((place / "store" / "shared" / "prepared").rglob("*.flac"))
    assert "is empty" in typed(place, "status").stdout


def test_a_refused_run_that_is_started_again_is_unfinished_until_it_is_refused_again(place, monkeypatch):
    def stopped(*args: object) -> None:
        raise StageError("the disk refused")

    monkeypatch.setattr(ingesting, "_read_dataset", stopped)
    typed(place, "ingest", str(place / "clips"), "--model", "tiny-base", "--workers", "1")
    assert refused(place).num_problems == 0
    assert "` continues it" in typed(place, "status").stdout
