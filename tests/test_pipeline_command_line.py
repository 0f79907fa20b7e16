"""A request as a command that people can type again, and status that shows it."""

from __future__ import annotations

import shlex

import pytest
from typer.testing import CliRunner

from cache import run_metadata
from pipeline.cli import app
from pipeline.execution import runner
from pipeline.execution.command_line import command_line
from pipeline.execution.records import request_record
from pipeline.request.recipe import Recipe, read_recipe
from tests.small_stores import StoreBuilder


def asked(command: str, monkeypatch) -> Recipe:
    """The recipe that a command line asks for."""
    recipes = []
    monkeypatch.setattr(runner, "run_until", lambda last, recipe, *args, **more: recipes.append(recipe) or 1 / 0)
    CliRunner().invoke(app, shlex.split(command)[1:])
    return recipes[0]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"model": "tiny-base", "rank": 8, "pre_encode": True},
        {"exclude": "a,seconds_total", "deterministic": False},
        {"caption": "dusty 'breaks' $x", "name": "my run", "save_every": 50},
    ],
)
def test_the_command_asks_for_the_same_request(flags, tmp_path, monkeypatch):
    (tmp_path / "my clips").mkdir()
    recipe = read_recipe(str(tmp_path / "my clips"), flags)
    assert asked(command_line(recipe, "run"), monkeypatch) == recipe


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ("https://me:word@host/clips.zip?token=secret", "https://host/clips.zip"),
        ("data:application/zip;base64," + "A" * 400, "DATA"),
        ("clips.zip", "clips.zip"),
    ],
)
def test_a_command_holds_no_secret_of_an_address(data, shown):
    assert command_line(read_recipe(data, {}), "run") == f"sa3-trainer run {shown}"


def test_a_command_that_imports_says_so():
    recipe = read_recipe("encoded", {"pre_encode": True})
    assert command_line(recipe, "encode", imported=True) == "sa3-trainer encode --import encoded"


def test_status_shows_of_a_stopped_training_where_it_is_and_the_command_that_goes_on(tmp_path):
    builder = StoreBuilder(tmp_path / "artifacts")
    scratch = builder.store.scratch("train", "a" * 64)
    (scratch / "checkpoints" / "step-00000050").mkdir(parents=True)
    recipe = read_recipe("clips.zip", {"model": "tiny-base", "number_of_steps": 400, "output": "adapters"})
    run = run_metadata.UnfinishedRun(
        name=scratch.name,
        stage="train",
        identity="a" * 64,
        params={"model": "tiny-base", "adapter_type": "lora", "rank": 16, "number_of_steps": 400},
        began="2026-11-30T06:18:41+00:00",
        request=request_record(recipe, "train", "clips", imported=False),
    )
    run_metadata.write(builder.store, run)
    first, second, *_ = CliRunner().invoke(app, ["status", "--store", str(builder.store.root)]).stdout.splitlines()
    command = "sa3-trainer run clips.zip --model tiny-base --number-of-steps 400 --output adapters"
    assert first == f"unfinished {scratch.name}, at step 50 of 400: `{command}` continues it"
    assert second.strip().startswith("clips.zip; for tiny-base; lora of rank 16; begun 2026-11-30 ")
    assert second.endswith("; goes to adapters/clips.safetensors")
