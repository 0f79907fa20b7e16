"""Notices about fields that are not used as given, whether or not anything is left to do."""

from __future__ import annotations

import io
import json

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.execution.runner import run_until
from pipeline.report import Report
from pipeline.request.notices import notices
from pipeline.request.recipe import read_recipe
from tests import small_datasets

CAPPED = "duration 380 s is beyond the model's native 120.0 s: 120.0 s is used"


@pytest.mark.parametrize(
    ("model", "duration", "said"),
    [
        ("tiny-base", "380", [CAPPED]),
        ("tiny-base", "120", []),
        ("tiny-base", None, []),
        ("medium-base", "380", []),
    ],
)
def test_a_duration_beyond_the_native_length_gives_a_notice(model, duration, said):
    recipe = read_recipe("clips.zip", {"model": model, "duration": duration, "pre_encode": True})
    assert list(notices(recipe, trains=True)) == said


def test_every_run_prints_the_notice_also_one_with_nothing_to_do(tmp_path):
    small_datasets.folder(tmp_path / "clips", small_datasets.clips("a"))
    usual = {"model": "tiny-base", "duration": "380", "store": str(tmp_path / "store"), "workers": "1"}
    recipe = read_recipe(str(tmp_path / "clips"), usual)
    first, again = (Report(stream=io.StringIO()) for _ in range(2))
    made = run_until("ingest", recipe, first)
    run_until("ingest", recipe, again)
    assert made.artifacts["ingest"].facts["duration_seconds"] == 120
    assert "nothing to do" in again.stream.getvalue()
    assert [report.stream.getvalue().splitlines().count(CAPPED) for report in (first, again)] == [1, 1]


def test_a_plan_prints_the_notice_beside_its_json(tmp_path):
    (tmp_path / "clips").mkdir()
    words = ["plan", str(tmp_path / "clips"), "--model", "tiny-base", "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(app, [*words, "--duration", "380", "--json"])
    assert CAPPED in done.stderr
    assert [entry["stage"] for entry in json.loads(done.stdout)["stages"]] == ["ingest", "train"]
