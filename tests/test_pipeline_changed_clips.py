"""Which clips and captions changed is said by name, where only the data did."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cache.store import Store
from pipeline.execution.runner import run_until
from pipeline.plan.plan import plan
from pipeline.report import Report, plan_lines
from pipeline.request.recipe import read_recipe
from pipeline.request.resolve import resolve_inputs

NAMES = ("drums/fill", "pads/cold", "pads/warm")


def write(folder: Path, name: str, value: float, caption: str = "a sound") -> None:
    file = folder / f"{name}.wav"
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.full((4410, 2), value), 44_100)
    file.with_suffix(".txt").write_text(caption)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ingested")
    for number, name in enumerate(NAMES):
        write(root / "clips", name, 0.1 * (number + 1))
    run_until("ingest", request(root), Report())
    return root


@pytest.fixture
def root(ingested, tmp_path) -> Path:
    shutil.copytree(ingested, tmp_path / "copy")
    return tmp_path / "copy"


def request(root: Path, **flags):
    folders = {"store": str(root / "artifacts"), "output": str(root / "output")}
    return read_recipe(str(root / "clips"), {"model": "tiny-base", "workers": 1, **folders, **flags})


def planned(root: Path, **flags) -> str:
    """The line of ingest."""
    recipe = request(root, **flags)
    return plan_lines(plan(recipe, Store(recipe.store), resolve_inputs(recipe, fetch=False), "ingest"))[0]


def test_what_is_unchanged_is_done(root):
    assert planned(root).startswith("ingest  done    finished 20")


def test_an_edited_caption_is_named(root):
    (root / "clips" / "pads" / "warm.txt").write_text("a warm pad")
    assert planned(root) == "ingest  changed 1 caption changed: pads/warm"


def test_clips_that_are_new_gone_or_other_bytes_are_named(root):
    write(root / "clips", "pads/new", 0.7)
    write(root / "clips", "drums/fill", 0.8)
    for file in (root / "clips" / "pads").glob("cold.*"):
        file.unlink()
    words = "1 clip new: pads/new; 1 clip gone: pads/cold; 1 clip changed: drums/fill"
    assert planned(root) == f"ingest  changed {words}"


def test_of_many_some_are_named_and_the_others_counted(root):
    for number in range(5):
        write(root / "clips", f"more/{number}", 0.01 * number)
    assert planned(root) == "ingest  changed 5 clips new: more/0, more/1, more/2 and 2 more"


def test_other_params_are_said_beside_the_clips_and_captions_made_otherwise_are_not_called_edited(root):
    write(root / "clips", "pads/new", 0.7)
    assert planned(root, trigger_phrase="mine") == (
        "ingest  changed trigger_phrase unset -> mine, 1 clip new: pads/new"
    )


def test_clips_that_were_never_seen_are_new_whatever_else_the_store_holds(root):
    shutil.rmtree(root / "clips")
    write(root / "clips", "another", 0.9)
    assert planned(root) == "ingest  new     never run on these clips"


def test_a_lost_manifest_only_means_that_no_clip_is_named(root):
    (root / "clips" / "pads" / "warm.txt").write_text("a warm pad")
    for manifest in (root / "artifacts").rglob("manifest.parquet"):
        manifest.unlink()
    assert planned(root) == "ingest  changed source changed"
