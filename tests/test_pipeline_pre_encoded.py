"""`encode --export`, `encode --import` and `train --import` as their users meet them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cache.store import Store
from pipeline.cli import app
from tests import small_datasets


class CommandLine:
    """Commands on one store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clips = small_datasets.folder(root / "clips", small_datasets.clips("a", "pads/b"))
        self.folder = root / "pre-encoded"

    def call(self, *words: object):
        places = ["--model", "tiny-base", "--store", self.root / "store", "--output", self.root / "output"]
        return CliRunner().invoke(app, [str(word) for word in [*words, *places]])

    def done(self, *words: object):
        result = self.call(*words)
        assert result.exit_code == 0, result.output
        return result


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> CommandLine:
    """After one encode with an export."""
    desk = CommandLine(tmp_path_factory.mktemp("desk"))
    desk.done("encode", desk.clips, "--workers", 1, "--export", desk.folder)
    return desk


def test_an_export_holds_every_clip_and_the_silence(desk):
    assert sorted(path.name for path in desk.folder.iterdir()) == [
        "0000000000.json", "0000000000.npy", "0000010000.json", "0000010000.npy", "silence.npy",
    ]  # fmt: skip
    about = json.loads((desk.folder / "0000010000.json").read_text("utf-8"))
    assert (about["relpath"], about["prompt"], about["padding_mask"]) == ("pads/b", "tone number 1", [1] * 6)
    assert np.load(desk.folder / "silence.npy").shape == (1, 128, 1292)


def test_a_folder_is_imported_and_then_known(desk):
    desk.done("encode", "--import", desk.folder, "--json")
    again = json.loads(desk.done("encode", "--import", desk.folder, "--json").stdout)
    assert again["artifacts"]["encode"]["facts"]["origin"]["num_imported"] == 2
    assert [run["state"] for run in planned(desk)] == ["HIT", "MISS"]


def planned(desk: CommandLine, *words: object) -> list[dict[str, str]]:
    return json.loads(desk.done("plan", "--import", desk.folder, "--json", *words).stdout)["stages"]


def test_a_plan_with_an_import_has_no_ingest_and_says_what_changed(desk):
    desk.done("encode", "--import", desk.folder)
    assert [(run["stage"], run["state"]) for run in planned(desk, "--latent-dtype", "float32")] == [
        ("encode", "MISS"),
        ("train", "MISS"),
    ]
    reason = planned(desk, "--latent-dtype", "float32")[0]["reason"]
    assert reason == "reads a pre-encoded folder; latent_dtype float16 -> float32"


def test_an_import_trains_and_the_artifact_is_named_by_content(desk, tmp_path):
    words = ("--number-of-steps", 1, "--rank", 2)
    desk.done("train", "--import", desk.folder, *words)
    config = json.loads((desk.root / "output" / "pre-encoded.json").read_text("utf-8"))
    assert (config["steps_done"], config["dataset"]["num_clips"]) == (1, 2)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in desk.folder.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert "nothing to do" in desk.done("run", "--import", moved, *words).stderr


def test_an_import_of_an_export_gives_the_clips_their_names_and_prompts_back(desk):
    desk.done("encode", "--import", desk.folder)
    receipts = {"source" in receipt.inputs: receipt for receipt in Store(desk.root / "store").receipts("encode")}
    imported, encoded = receipts[True].facts, receipts[False].facts
    for name in ("num_clips", "num_prompts", "num_frames", "latent_channels"):
        assert imported[name] == encoded[name]


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("encode", ["CLIPS", "--import", "FOLDER"], "import: takes the place of DATA; give one of them"),
        ("encode", ["--import", "CLIPS/a.wav"], "import: must be a folder with .npy and .json files"),
        ("encode", ["CLIPS", "--export", "FOLDER"], "export: must be a new or empty folder"),
        ("run", ["--import", "FOLDER", "--no-pre-encode"], "pre_encode: must be on"),
        ("train", ["--import", "FOLDER", "--trigger-phrase", "mine"], "trigger_phrase: has no effect"),
        ("plan", ["--import", "FOLDER", "--encode-precision", "bf16"], "encode_precision: has no effect"),
        ("encode", [], "audio_data_url: must be given: a .zip or a folder of clips"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_meant_is_wrong_usage(desk, command, words, message):
    places = {"CLIPS": str(desk.clips), "CLIPS/a.wav": str(desk.clips / "a.wav"), "FOLDER": str(desk.folder)}
    done = desk.call(command, *(places.get(word, word) for word in words))
    assert (done.exit_code, message in done.stderr) == (2, True), done.output


def test_clips_that_are_no_pre_encoded_folder_are_refused_with_every_fault(desk):
    done = desk.call("encode", "--import", desk.clips)
    assert done.exit_code == 1
    assert "too_few_clips" in done.stderr
