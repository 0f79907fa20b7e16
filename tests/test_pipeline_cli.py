"""The command line as its users meet it: exit codes, JSON, messages."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.fields import FIELDS


def call(*words: str, **settings):
    return CliRunner().invoke(app, [*words], **settings)


@pytest.mark.parametrize("command", [command.name or command.callback.__name__ for command in app.registered_commands])
def test_every_command_has_help_with_an_example(command):
    shown = call(command, "--help")
    assert shown.exit_code == 0
    assert f"Example: sa3-trainer {command}" in shown.stdout


@pytest.mark.parametrize("command", ["run", "ingest", "encode", "train", "plan"])
def test_every_field_is_a_flag(command):
    shown = call(command, "--help").stdout
    assert [field.name for field in FIELDS if f"--{field.name.replace('_', '-')}" not in shown] == []


def test_wrong_fields_exit_2_and_are_all_named():
    done = call("run", "clips.zip", "--rank", "0", "--seed", "x", "--model", "huge")
    assert done.exit_code == 2
    assert [name for name in ("rank", "seed", "model") if f"  {name}: " not in done.stderr] == []


def test_wrong_fields_are_one_json_document_in_the_hosted_form():
    done = call("run", "clips.zip", "--rank", "999", "--json")
    entry = json.loads(done.stdout)["detail"][0]
    assert (entry["loc"], entry["type"], entry["input"]) == (["body", "rank"], "less_than_equal", "999")


def test_missing_data_exits_2_with_what_to_give(tmp_path):
    done = call("plan", str(tmp_path / "none.zip"), "--model", "tiny-base")
    assert done.exit_code == 2
    assert "no such file or folder. Give the path of a .zip or a folder" in done.stderr


def test_an_empty_store_says_what_to_type(tmp_path):
    done = call("status", "--store", str(tmp_path / "none"))
    assert done.exit_code == 0
    assert "holds nothing yet; `sa3-trainer run DATA`" in done.stdout
    assert not (tmp_path / "none").exists()


def test_planning_touches_nothing(tmp_path):
    (tmp_path / "clips").mkdir()
    done = call("plan", str(tmp_path / "clips"), "--model", "tiny-base", "--store", str(tmp_path / "store"))
    assert done.exit_code == 0
    assert not (tmp_path / "store").exists()


def test_a_plan_is_one_json_document(tmp_path):
    (tmp_path / "clips").mkdir()
    words = [
        "plan",
        str(tmp_path / "clips"),
        "--model",
        "tiny-base",
        "--store",
        str(tmp_path / "store"),
        "--pre-encode",
        "--json",
    ]
    stages = json.loads(call(*words).stdout)
    assert [(entry["stage"], entry["state"]) for entry in stages] == [
        ("ingest", "MISS"),
        ("encode", "MISS"),
        ("train", "MISS"),
    ]


def test_a_dataset_with_faults_exits_1_and_lists_them_as_json(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "a.wav").write_bytes(b"not audio")
    (clips / "b.txt").write_text("a caption without its audio")
    words = [
        "ingest",
        str(clips),
        "--model",
        "tiny-base",
        "--store",
        str(tmp_path / "store"),
        "--workers",
        "1",
        "--json",
    ]
    done = call(*words)
    assert done.exit_code == 1
    found = {(tuple(entry["loc"]), entry["type"]) for entry in json.loads(done.stdout)["detail"]}
    assert (("body", "audio_data_url", "a.wav"), "missing_caption") in found
    assert (("body", "audio_data_url", "b.txt"), "missing_audio") in found


def test_an_impossible_rank_is_refused_before_anything_runs(tmp_path, monkeypatch):
    from stages.models import tiny

    store = tmp_path / "store"
    (store / "shared" / "weights").mkdir(parents=True)
    tiny.make(store / "shared" / "weights" / tiny.folder_name())
    (tmp_path / "clips").mkdir()
    request = ["plan", str(tmp_path / "clips"), "--model", "tiny-base", "--store", str(store)]
    done = call(*request, "--adapter-type", "lora-xs", "--rank", "64")
    assert done.exit_code == 2
    assert "rank must be at most 32 here; got 64" in done.stderr
    named = call(*request, "--include", "layers[0-11]")
    assert named.exit_code == 2
    assert "model.transformer.layers.0." in named.stderr
