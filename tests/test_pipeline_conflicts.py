"""All errors of a request are reported together: invalid fields, conflicts between fields, and missing files."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import RecipeError
from pipeline.request.recipe import read_recipe


def fields_of(flags, data="clips.zip", **asked) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read_recipe(data, flags, **asked)
    return [str(error.loc[0]) for error in caught.value.errors]


def test_conflicts_are_reported_together_with_invalid_fields():
    together = {"frames_per_batch": "50", "batch_size": "4", "warmup_steps": "24", "number_of_steps": "24"}
    found = fields_of({**together, "gradient_accumulation": "0", "ema_decay": "0"})
    assert sorted(found) == ["ema_decay", "frames_per_batch", "gradient_accumulation", "warmup_steps"]


def test_an_invalid_field_conflicts_with_no_other():
    assert fields_of({"batch_size": "9", "frames_per_batch": "50"}) == ["batch_size"]
    assert fields_of({"number_of_steps": "0", "warmup_steps": "24"}) == ["number_of_steps"]
    assert fields_of({"pre_encode": "perhaps", "latent_dtype": "float32"}, trains=True) == ["pre_encode"]


def test_conflicts_are_reported_together_with_missing_data():
    found = fields_of({"warmup_steps": "2000"}, data=None, check_files=True)
    assert sorted(found) == ["audio_data_url", "warmup_steps"]


def test_missing_files_are_reported_together_with_invalid_fields(tmp_path):
    flags = {"rank": "0", "lora_checkpoint_url": str(tmp_path / "none.safetensors")}
    assert fields_of(flags, str(tmp_path / "none.zip"), check_files=True) == [
        "rank",
        "audio_data_url",
        "lora_checkpoint_url",
    ]


def test_two_missing_files_are_reported_together(tmp_path):
    flags = {"lora_checkpoint_url": f"file://{tmp_path}/none.safetensors"}
    assert fields_of(flags, str(tmp_path / "none.zip"), check_files=True) == ["audio_data_url", "lora_checkpoint_url"]


def test_a_url_is_not_checked_as_a_local_file(tmp_path):
    flags = {"rank": "0", "lora_checkpoint_url": "https://example.org/a.safetensors"}
    assert fields_of(flags, "https://example.org/clips.zip", check_files=True) == ["rank"]
    assert fields_of({"rank": "0"}, "data:application/zip;base64,UEsF", check_files=True) == ["rank"]


@pytest.mark.parametrize("command", ["run", "plan", "explain", "ingest"])
def test_commands_name_the_missing_data_with_the_wrong_field(tmp_path, command):
    done = CliRunner().invoke(app, [command, str(tmp_path / "none.zip"), "--rank", "0", "--json"])
    assert done.exit_code == 2
    assert [entry["loc"][1] for entry in json.loads(done.stdout)["detail"]] == ["rank", "audio_data_url"]


def test_the_error_for_a_missing_adapter_file_asks_for_a_safetensors_file(tmp_path):
    (tmp_path / "clips").mkdir()
    words = ["plan", str(tmp_path / "clips"), "--model", "tiny-base", "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(app, [*words, "--lora-checkpoint-url", "nofile.safetensors"])
    assert done.exit_code == 2
    assert "lora_checkpoint_url nofile.safetensors: no such file. Give the .safetensors or .ckpt" in done.stderr
    assert ".zip" not in done.stderr
