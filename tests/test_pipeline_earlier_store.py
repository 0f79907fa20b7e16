"""A store that version 0.5.0 wrote is read: plan says what has changed since, and nothing in it is lost.

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


def test_plan_says_that_an_earlier_version_made_what_the_store_holds(earlier_store):
    ingest, *_ = json.loads(call(earlier_store, "plan", "--number-of-steps", "3", "--json").stdout)["stages"]
    assert (ingest["state"], ingest["reason"]) == ("MISS", "version 2 -> 3")


def test_a_run_leaves_the_adapter_of_an_earlier_version_in_the_store(earlier_store):
    (made,) = (earlier_store / "store" / "train").iterdir()
    before = (made / "adapter.safetensors").read_bytes()
    call(earlier_store, "run", "--number-of-steps", "3")
    assert (made / "adapter.safetensors").read_bytes() == before


def test_status_lists_what_an_earlier_version_made(earlier_store):
    done = CliRunner().invoke(app, ["status", "--json", "--store", str(earlier_store / "store")])
    assert {row["stage"] for row in json.loads(done.stdout)["artifacts"]} == {"ingest", "encode", "train"}
