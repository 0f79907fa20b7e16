"""A store that version 0.5.0 wrote is used as it is: what is in it is found, and a training in it goes on.

`golden/store-0.5.0` was made by that version: three recorded clips, the small golden family's weights, three steps
of rank 2. Its prepared audio and its caches (remembered digests, registries, locks) are left out, as they may be.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pipeline.cli import app
from stages import catalogue

GOLDEN = Path(__file__).parent / "golden"
FAMILY = GOLDEN / "tiny-s"
REQUEST = ["--weights", str(FAMILY), "--model", "tiny-base", "--rank", "2", "--pre-encode", "--threads", "1"]


@pytest.fixture
def earlier_store(tmp_path, monkeypatch) -> Path:
    """A copy of the store beside the clips it was made of; tiny-base is a model of the golden family's size."""
    real = catalogue.models()
    spec = replace(real["tiny-base"], latent_channels=16, max_samples=2_097_152, max_seconds=48)
    monkeypatch.setattr(catalogue, "models", lambda: {**real, "tiny-base": spec})
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in (0, 2, 3):
        shutil.copy(FAMILY / "preencode" / "wavs" / f"clip{number}.wav", clips)
        (clips / f"clip{number}.txt").write_text(f"clip number {number}\n")
    shutil.copytree(GOLDEN / "store-0.5.0", tmp_path / "store")
    return tmp_path


def call(place: Path, command: str, *more: str) -> Result:
    """A command over the clips and the store; it must succeed."""
    words = [command, str(place / "clips"), "--store", str(place / "store"), "--output", str(place / "output")]
    done = CliRunner().invoke(app, [*words, *REQUEST, *more])
    assert done.exit_code == 0, done.output
    return done


def test_every_stage_is_found_in_the_store_of_0_5_0(earlier_store):
    decided = json.loads(call(earlier_store, "plan", "--number-of-steps", "3", "--json").stdout)
    assert [run["state"] for run in decided] == ["HIT", "HIT", "HIT"]


def test_the_adapter_in_the_output_folder_is_the_one_that_0_5_0_made(earlier_store):
    call(earlier_store, "run", "--number-of-steps", "3", "--name", "again")
    (made,) = (GOLDEN / "store-0.5.0" / "train").iterdir()
    assert (earlier_store / "output" / "again.safetensors").read_bytes() == (made / "adapter.safetensors").read_bytes()


def test_a_training_of_0_5_0_goes_on_from_its_checkpoint(earlier_store):
    said = call(earlier_store, "run", "--number-of-steps", "4").stderr
    assert "from step 3" in said
