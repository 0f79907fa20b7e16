"""Usage errors, for people and as JSON."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pipeline.cli import app

WRONG = [
    (("run", "clips.zip", "--foo", "3"), "--foo"),
    (("status", "more"), "more"),
    (("run", "clips.zip", "--rank"), "--rank"),
    (("rum", "clips.zip"), "rum"),
    (("--foo", "run"), "--foo"),
]


@pytest.mark.parametrize(("words", "named"), WRONG)
def test_a_usage_error_is_one_json_document_with_json(words, named):
    done = CliRunner().invoke(app, [words[0], "--json", *words[1:]])
    assert done.exit_code == 2
    told = json.loads(done.stdout)
    assert named in told["message"] and told["detail"][0]["msg"] == told["message"]
    assert named in done.stderr


@pytest.mark.parametrize(("words", "named"), WRONG)
def test_a_usage_error_without_json_goes_to_stderr_only(words, named):
    done = CliRunner().invoke(app, [*words])
    assert (done.exit_code, done.stdout) == (2, "")
    assert named in done.stderr


def test_an_invalid_field_is_one_json_document():
    done = CliRunner().invoke(app, ["run", "clips.zip", "--rank", "0", "--json"])
    assert json.loads(done.stdout)["detail"][0]["loc"] == ["body", "rank"]
