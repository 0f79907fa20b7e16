"""Flags as people type them: help in two tiers, short names, names of other trainers, the user's own defaults."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import COMMANDS_WITH_FIELDS, RecipeError
from pipeline.execution.outputs import with_request
from pipeline.options.tiers import FIRST, uses
from pipeline.request.fields import DATA, FIELDS, HOSTED
from pipeline.request.notices import PRE_ENCODE_NOTICE, notices
from pipeline.request.recipe import read_recipe
from pipeline.settings.other_names import ADVICE, ALIASES, MEANT, hint
from pipeline.settings.user_config import config_file, user_defaults

ROOT = Path(__file__).parents[1]
NAMES = {DATA.name, *(field.name for field in FIELDS)}


def typed(*words: str, **environment: str):
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "80", **environment})


def flags_in(text: str) -> set[str]:
    return {word.strip(",") for word in text.split() if word.startswith("--")}


@pytest.mark.parametrize("command", COMMANDS_WITH_FIELDS)
def test_help_shows_what_most_people_set_and_counts_the_rest(command):
    shown = typed(command, "--help").stdout
    used = [field for field in FIELDS if uses(command, field)]
    first = {f"--{field.name.replace('_', '-')}" for field in used if field.name in FIRST}
    rest = {f"--{field.name.replace('_', '-')}" for field in used if field.name not in FIRST}
    assert first <= flags_in(shown)
    assert not rest & flags_in(shown)
    assert f"{len(rest)} more fields: " in shown and f"{command} --help-all" in shown


@pytest.mark.parametrize("command", COMMANDS_WITH_FIELDS)
def test_help_all_shows_every_field_that_the_command_uses_and_no_other(command):
    shown = flags_in(typed(command, "--help-all").stdout)
    for field in FIELDS:
        assert (f"--{field.name.replace('_', '-')}" in shown) == uses(command, field), field.name


def test_ingest_has_no_fields_of_a_training():
    shown = typed("ingest", "--help-all").stdout
    assert "--rank" not in shown and "--pre-encode" not in shown and "--resampler" in shown


def test_every_hosted_field_is_in_the_first_tier():
    assert set(HOSTED) <= set(FIRST) <= NAMES


def test_the_help_of_train_states_its_own_default():
    one_line = {name: " ".join(typed(name, "--help").stdout.split()) for name in ("train", "run")}
    assert "inside the training loop [on]" in one_line["train"]
    assert "inside the training loop [off]" in one_line["run"]


def test_no_summary_of_a_command_is_cut_off():
    assert "..." not in typed("--help").stdout.partition("Commands:")[2]


@pytest.mark.parametrize("command", [one.name or one.callback.__name__ for one in app.registered_commands])
def test_every_command_shows_an_example_on_a_line_of_its_own(command):
    lines = typed(command, "--help", COLUMNS="120").stdout.splitlines()
    assert any(line.strip().removeprefix("Example: ").startswith(f"sa3-trainer {command}") for line in lines)


def test_the_version_is_told_without_a_command():
    assert typed("--version").stdout.startswith("sa3-trainer ")


def test_a_shell_is_offered_the_values_of_a_choice():
    run = typer.main.get_command(app).commands["run"]
    model = next(option for option in run.params if option.name == "model")
    assert [item.value for item in model.shell_complete(typer.Context(run), "small")] == [
        "small-music-base",
        "small-sfx-base",
    ]


def test_other_names_mean_fields_and_are_none_themselves():
    assert set(MEANT.values()) | set(ALIASES) <= NAMES
    short = {name for names in ALIASES.values() for name in names}
    assert not (set(MEANT) | set(ADVICE)) & (NAMES | short)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("run", "x", "--epochs", "3"), "--steps counts batches"),
        (("run", "x", "--network-dim", "3"), "It is called --rank here."),
        (("train", "x", "--max-train-steps", "3"), "It is called --number-of-steps here."),
        (("run", "x", "--gpu"), "--device cuda"),
        (("run", "x", "--resume"), "type the same command again"),
        (("run", "x", "--stps", "3"), "--steps"),
    ],
)
def test_a_flag_of_another_trainer_is_answered_with_ours(words, says):
    done = typed(*words)
    assert done.exit_code == 2 and says in done.output


def test_a_hint_names_only_what_the_command_has():
    assert hint("network_dim", frozenset({"model"})) == ""


def test_a_recipe_is_told_what_a_field_is_called_here(tmp_path):
    (tmp_path / "a.toml").write_text('audio_data_url = "x.zip"\nlora_rank = 3\nepochs = 3\n')
    with pytest.raises(RecipeError) as caught:
        read_recipe(None, {}, tmp_path / "a.toml")
    assert "lora_rank: is not a field; did you mean rank?" in str(caught.value)
    assert "epochs: is not a field. --steps counts batches" in str(caught.value)


def test_short_names_are_flags_and_fields_of_a_recipe(tmp_path):
    (tmp_path / "a.toml").write_text('dataset = "x.zip"\nsteps = 30\nlr = 0.001\n')
    values = read_recipe(None, {}, tmp_path / "a.toml")
    assert (values.source, values.values["number_of_steps"]) == (str(tmp_path / "x.zip"), 30)
    done = typed("plan", "--dataset", str(tmp_path / "none.zip"), "--steps", "0", "--lr", "5")
    assert "number_of_steps" in done.output and "learning_rate" in done.output and "none.zip" in done.output


def test_a_field_and_its_short_name_in_one_recipe_are_refused(tmp_path):
    (tmp_path / "a.toml").write_text("steps = 30\nnumber_of_steps = 40\n")
    with pytest.raises(RecipeError, match="gives number_of_steps twice"):
        read_recipe("x.zip", {}, tmp_path / "a.toml")


def test_the_data_as_argument_and_as_flag_are_refused():
    done = typed("run", "a.zip", "--dataset", "b.zip")
    assert done.exit_code == 2 and "given twice" in done.output


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("clips.zip", "{folder}/clips.zip"),
        ("10:30 takes", "{folder}/10:30 takes"),
        ("../clips", "{folder}/../clips"),
        ("/data/clips.zip", "/data/clips.zip"),
        ("https://a.example/clips.zip", "https://a.example/clips.zip"),
        ("file:///data/clips.zip", "file:///data/clips.zip"),
    ],
)
def test_relative_paths_of_a_recipe_follow_the_recipe(tmp_path, given, seen):
    (tmp_path / "a.toml").write_text(f'audio_data_url = "{given}"\nstore = "kept"\n')
    found = read_recipe(None, {}, tmp_path / "a.toml")
    assert found.source == seen.format(folder=tmp_path)
    assert found.store == tmp_path / "kept"


def test_a_relative_path_typed_beside_a_recipe_follows_the_shell(tmp_path):
    (tmp_path / "a.toml").write_text('audio_data_url = "a.zip"\n')
    assert read_recipe("clips.zip", {"store": "here"}, tmp_path / "a.toml").source == "clips.zip"


def test_the_json_beside_an_adapter_is_a_recipe_without_paths(tmp_path):
    flags = {"rank": "8", "model": "tiny-base", "include": "attn ff", "store": "s", "weights": "w", "pre_encode": True}
    first = read_recipe("clips.zip", flags)
    (tmp_path / "a.json").write_bytes(with_request(b'{"format_version": 1, "alpha": 8.0}', first))
    assert set(json.loads((tmp_path / "a.json").read_bytes())["request"]) == {"rank", "model", "include", "pre_encode"}
    again = read_recipe("clips.zip", {"store": "s", "weights": "w"}, tmp_path / "a.json")
    assert again.values == first.values


def test_a_json_of_an_earlier_version_is_refused_in_words(tmp_path):
    (tmp_path / "a.json").write_text('{"format_version": 1, "rank": 8}')
    with pytest.raises(RecipeError, match="did not keep the request"):
        read_recipe("clips.zip", {}, tmp_path / "a.json")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes the user's config."""
    monkeypatch.setenv("SA3_CONFIG", str(tmp_path / "config.toml"))
    return (tmp_path / "config.toml").write_text


def test_flags_win_over_the_recipe_over_the_environment_over_the_users_file(own, tmp_path, monkeypatch):
    own('store = "of file"\ndevice = "cpu"\n')
    assert (read_recipe("x", {}).values["store"], read_recipe("x", {}).values["device"]) == ("of file", "cpu")
    monkeypatch.setenv("SA3_STORE", "of environment")
    assert read_recipe("x", {}).values["store"] == "of environment"
    (tmp_path / "a.toml").write_text('store = "/of recipe"\n')
    assert read_recipe("x", {}, tmp_path / "a.toml").values["store"] == "/of recipe"
    assert read_recipe("x", {"store": "of flag"}, tmp_path / "a.toml").values["store"] == "of flag"


def test_weights_of_the_users_file_do_not_replace_bundled_ones(own):
    own('weights = "/models/medium"\n')
    assert read_recipe("x", {}).weights == Path("/models/medium")
    assert read_recipe("x", {"model": "tiny-base"}).weights is None


def test_the_users_store_holds_for_commands_without_a_recipe(own, tmp_path):
    own(f'store = "{tmp_path / "mine"}"\n')
    assert str(tmp_path / "mine") in typed("verify").output


@pytest.mark.parametrize(
    ("text", "says"),
    [("rank = 3", "sets rank; it may set store"), ("store = ", "cannot be read"), ("store = []", "must be text")],
)
def test_a_wrong_users_file_is_named(own, text, says):
    own(text)
    with pytest.raises(RecipeError, match=says):
        user_defaults()
    done = typed("status")
    assert done.exit_code == 2 and says.split()[0] in done.output
    assert typed("--help").exit_code == 0, "help is there all the same"


def test_the_users_file_has_the_place_that_the_system_gives(monkeypatch):
    monkeypatch.delenv("SA3_CONFIG")
    monkeypatch.setenv("APPDATA" if sys.platform == "win32" else "XDG_CONFIG_HOME", "/settings")
    assert config_file() == Path("/settings/sa3-trainer/config.toml")


def test_a_run_without_pre_encode_says_once_what_it_would_bring():
    assert list(notices(read_recipe("x", {}), trains=True)) == [PRE_ENCODE_NOTICE]
    assert list(notices(read_recipe("x", {}), trains=False)) == []
    for chosen in (True, False):
        assert list(notices(read_recipe("x", {"pre_encode": chosen}), trains=True)) == []


def test_completion_is_written_by_the_command_itself():
    code = "import sys; sys.argv = ['sa3-trainer']; from pipeline.__main__ import main; main()"
    environment = {"_SA3_TRAINER_COMPLETE": "complete_bash", "COMP_WORDS": "sa3-trainer ver", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["verify"]


def test_a_kind_that_the_default_rate_does_not_suit_says_so_unless_a_rate_is_chosen():
    xs = {"adapter_type": "dora-rows-xs", "pre_encode": True}
    (line,) = notices(read_recipe("x", xs), trains=True)
    assert line.startswith("dora-rows-xs learns little") and "--learning-rate 1e-3" in line
    assert list(notices(read_recipe("x", xs | {"learning_rate": 1e-4}), trains=True)) == []
    assert list(notices(read_recipe("x", xs | {"adapter_type": "dora-rows"}), trains=True)) == []
