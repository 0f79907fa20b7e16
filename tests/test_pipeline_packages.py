"""Optional packages that a request needs are checked before anything runs."""

from __future__ import annotations

import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from cache.store import Store
from pipeline.cli import app
from pipeline.errors import RecipeError
from pipeline.execution.records import environment
from pipeline.execution.runner import run_until
from pipeline.plan import packages
from pipeline.plan.packages import check_packages
from pipeline.plan.plan import plan
from pipeline.plan.stage_run import Plan, State
from pipeline.report import Report
from pipeline.request.recipe import Recipe, read_recipe
from pipeline.request.resolve import resolve_inputs
from tests import small_datasets

ASKED = {"base_quantization": "int8", "optimizer": "lion"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("packages")
    small_datasets.folder(root / "clips", small_datasets.clips("a", "b"))
    return root


def asked(place, **flags: object) -> Recipe:
    usual = {"model": "tiny-base", "store": str(place / "store"), "output": str(place / "output")}
    small = {"pre_encode": True, "number_of_steps": 1, "rank": 1, "include": ["layers.0.self_attn"], "workers": 1}
    return read_recipe(str(place / "clips"), {**usual, **small, **flags})


def planned(recipe: Recipe, last: str = "train") -> Plan:
    return plan(recipe, Store(recipe.store), resolve_inputs(recipe, fetch=True), last)


def without_packages(monkeypatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda module: None)


def test_fields_that_need_missing_packages_are_refused_all_at_once(place, monkeypatch):
    without_packages(monkeypatch)
    recipe = asked(place, **ASKED, seed=7)
    with pytest.raises(RecipeError) as caught:
        check_packages(recipe, planned(recipe))
    found = {error.loc[0]: error.msg for error in caught.value.errors}
    assert found == {
        "base_quantization": "int8 needs the package torchao: `pip install torchao`, or ask for none",
        "optimizer": "lion needs the package pytorch-optimizer: `pip install pytorch-optimizer`, or ask for adamw",
    }


@pytest.mark.parametrize("call", [["run", "clips"], ["encode", "clips"], ["generate", "words"]])
def test_python_without_docstrings_is_refused_in_words_before_anything_runs(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    flags = {name: getattr(sys.flags, name) for name in dir(sys.flags) if name[0] != "_"}
    monkeypatch.setattr(sys, "flags", SimpleNamespace(**{**flags, "optimize": 2}))
    done = CliRunner().invoke(app, [*call, "--model", "tiny-base"])
    assert done.exit_code == 1 and "without docstrings (-OO" in done.output
    assert not (tmp_path / "artifacts" / "shared").exists()


def test_a_run_is_refused_before_its_first_stage(place, monkeypatch):
    without_packages(monkeypatch)
    recipe = asked(place, **ASKED, trigger_phrase="never ingested")
    with pytest.raises(RecipeError):
        run_until("train", recipe, Report())
    assert [run.state for run in planned(recipe).runs] == [State.MISS] * 3


def test_a_request_without_such_fields_needs_no_package(place, monkeypatch):
    without_packages(monkeypatch)
    recipe = asked(place)
    check_packages(recipe, planned(recipe))


def test_encode_needs_no_package_of_training(place, monkeypatch):
    without_packages(monkeypatch)
    recipe = asked(place, **ASKED)
    check_packages(recipe, planned(recipe, "encode"))


def test_a_finished_training_is_found_without_the_packages_that_made_it(place, monkeypatch):
    recipe = asked(place, **ASKED)
    made = run_until("train", recipe, Report())
    without_packages(monkeypatch)
    again = run_until("train", recipe, Report())
    assert [run.state for run in again.plan.runs] == [State.HIT] * 3
    assert again.artifacts["train"].fingerprint == made.artifacts["train"].fingerprint


def test_a_receipt_names_the_versions_of_optional_packages_that_are_there(monkeypatch):
    real = metadata.version

    def installed(name: str) -> str:
        if name == "soxr":
            raise metadata.PackageNotFoundError(name)
        return "1.2.3" if name in ("torchao", "pytorch-optimizer") else real(name)

    monkeypatch.setattr(metadata, "version", lambda name: "2.0" if name == "triton" else installed(name))
    found = environment()
    assert (found["torchao"], found["pytorch-optimizer"], found["triton"]) == ("1.2.3", "1.2.3", "2.0")
    assert "soxr" not in found and found["torch"] == real("torch")
