"""Usage errors, for people and as JSON."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cache.errors import CacheError
from pipeline.cli import app
from pipeline.cli_errors import reported_errors
from pipeline.errors import PipelineError
from stages.errors import StageError

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


CODES = {
    "AdapterMismatch", "AdapterNotWritable", "AdapterOrder", "ArtifactDamaged", "BasesDamaged", "CannotFingerprint",
    "CheckpointMismatch", "ClipNotFound", "DatasetFaults", "DeviceFull", "DeviceFullBeside", "DeviceNotFound",
    "EngineUnavailable", "FetchFailed", "FilterMatchesNothing", "HeldByAnother", "ItemNotFound", "LatentsNotFinite",
    "LayerNotAdaptable", "LossNotFinite", "ManifestDamaged", "ManifestMismatch", "MemoryShort", "NeedsDamaged",
    "NetworkNotSupported", "NoStore", "NotFit", "NothingToEvict", "OverBudget", "PackageMissing", "PlaceUnusable",
    "PreparedMissing", "RankTooLarge", "ReceiptDamaged", "RecipeError", "ShardDamaged", "ShardReplaced",
    "SourceNotFound", "SourceUnreadable", "SpaceShort", "StillNeeded", "Stopped", "StoreDamaged", "UnknownFormat",
    "WeightsNotFound", "WriteFailed",
}  # fmt: skip
"""`type` of errors in JSON since version 0.5.0. New names may be added; these must not change."""


def subclasses(base: type) -> list[type]:
    return [found for each in base.__subclasses__() for found in (each, *subclasses(each))]


def test_the_type_of_an_error_in_json_outlives_the_name_of_its_class():
    modules = ("cache.errors", "pipeline.errors", "stages.errors")
    errors = [error for base in (CacheError, PipelineError, StageError) for error in subclasses(base)]
    declared = [error for error in errors if error.__module__ in modules]
    codes = [getattr(error, "code", error.__name__) for error in declared]
    assert len(codes) == len(set(codes))
    assert set(codes) >= CODES


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["plan", "clips", "--exclude", "to_local_embed", "seconds_total"], "--exclude to_local_embed,seconds_total"),
        (["run", "clips", "--include=a", "b", "c", "--rank", "4"], "--include a,b,c"),
        (["train", "clips", "--rank", "4", "--exclude", "a", "b"], "--exclude a,b"),
    ],
)
def test_several_names_after_one_flag_are_answered_with_the_right_form(words, right):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and right in done.stderr


def test_a_name_that_is_taken_for_the_data_is_answered_with_the_right_form(monkeypatch):
    words = ["plan", "--exclude", "to_local_embed", "seconds_total"]
    monkeypatch.setattr("sys.argv", ["sa3-trainer", *words])
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and "--exclude to_local_embed,seconds_total" in done.stderr


def test_a_folder_after_several_names_is_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my clips").mkdir()
    done = CliRunner().invoke(app, ["run", "--exclude", "a", "b", "my clips"])
    assert done.exit_code == 2 and "'my clips' --exclude a,b" in done.stderr
    done = CliRunner().invoke(app, ["run", "my clips", "--exclude", "a", "b", "my clips"])
    assert "DATA --exclude a,b,my clips" in done.stderr


def test_other_extra_arguments_are_answered_as_before():
    done = CliRunner().invoke(app, ["plan", "clips", "more", "--exclude", "a"])
    assert done.exit_code == 2 and "Several names" not in done.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nope"], "error: no such command 'nope'. `"),
        (["evict", "--foo"], "error: no such option: --foo. `"),
        (
            ["run", "my", "clips"],
            "error: too many arguments (clips): a path or text with spaces goes in quotes. `",
        ),
        (["status", "more"], "error: it takes no argument: more. `"),
        (["rum", "clips"], "error: no such command 'rum'. Did you mean 'run'? `"),
        (["bench", "--rank", "x"], "error: invalid value for '--rank': it must be a whole number. `"),
    ],
)
def test_usage_errors_are_one_line_as_all_errors_are(words, line):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert done.stderr.startswith(line) and done.stderr.endswith(" --help` shows what can be given.\n")
    assert done.stderr.count("\n") == 1


def test_the_command_alone_shows_its_help_and_no_error():
    done = CliRunner().invoke(app, [])
    assert done.output.startswith("Usage:") and "error:" not in done.output
    assert done.output.rstrip().endswith("Let clients of the hosted trainer train on this machine.")


def test_a_flag_without_its_value_points_to_the_help_of_its_command():
    done = CliRunner().invoke(app, ["ingest", "clips", "--caption"])
    assert done.exit_code == 2 and "ingest --help` shows" in done.stderr


@pytest.mark.parametrize(
    ("command", "goes_on"), [("run", True), ("encode", True), ("generate", False), ("bench", False)]
)
def test_going_on_is_promised_only_by_commands_that_save_what_is_done(command, goes_on, capsys):
    with pytest.raises(SystemExit), reported_errors(command):
        raise KeyboardInterrupt
    assert ("continue from the last piece" in capsys.readouterr().err) is goes_on
