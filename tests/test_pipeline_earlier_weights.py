"""A store that tiny-base-v1 was used with: plan tells of it, and the command that it names frees what is of v1."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import soundfile
from click.testing import Result
from typer.testing import CliRunner

from pipeline.cli import app
from stages import catalogue
from tests.small_stores import StoreBuilder

V1 = {"autoencoder": "8be08a06e20991e1824dd2862d769a3dda232536c074f6175355249d4d08c79c"}
V2 = {"autoencoder": "0" * 64}


@pytest.fixture
def clips(tmp_path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    soundfile.write(folder / "a.wav", [[0.1, 0.2]] * 44_100, 44_100)
    (folder / "a.txt").write_text("a clip")
    return folder


@pytest.fixture
def builder(tmp_path) -> StoreBuilder:
    return StoreBuilder(tmp_path / "a store")


def called(*words: str) -> Result:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done


def notes(builder: StoreBuilder, clips: Path, *more: str) -> list[str]:
    done = called("plan", str(clips), "--store", str(builder.store.root), "--pre-encode", *more)
    return [line for line in done.stderr.splitlines() if line.startswith("note:")]


def test_plan_says_in_one_line_that_results_are_of_the_earlier_model(builder, clips):
    builder.train((1, 2), components=V1)
    (line,) = notes(builder, clips, "--model", "tiny-base")
    assert "2 results" in line and "tiny-base-v1" in line


def test_the_command_that_it_names_frees_them_and_nothing_else(builder, clips):
    builder.train((0, 1), components=V1)
    builder.train((2, 3), components=V2)
    before = builder.shared()
    (line,) = notes(builder, clips, "--model", "tiny-base")
    called(*shlex.split(line.split("`")[1])[1:], "--yes")
    assert builder.names() == ["encode", "ingest", "ingest", "train"]
    assert len([path for path in before - builder.shared() if path.startswith("latents/")]) == 1
    assert notes(builder, clips, "--model", "tiny-base") == []


def test_results_of_the_present_model_are_not_told(builder, clips):
    builder.train((1,), components=V2)
    assert notes(builder, clips, "--model", "tiny-base") == []


def test_who_plans_for_another_model_is_not_told(builder, clips):
    builder.train((1,), components=V1)
    assert notes(builder, clips, "--model", "small-music-base") == []


def test_the_weights_that_ship_are_none_of_the_earlier_ones():
    from stages.models.checkpoint_folder import open_folder

    for family in catalogue.bundled_families():
        digests = open_folder(family.MODELS[0].name, family.FOLDER).digests
        assert catalogue.earlier_weights(digests) is None
