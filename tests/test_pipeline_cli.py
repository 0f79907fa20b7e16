"""The command line as its users meet it: exit codes, JSON, messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import COMMANDS_WITH_FIELDS


def call(*words: str, **settings):
    return CliRunner().invoke(app, [*words], **settings)


def every_field(command: str) -> str:
    """The last line of an error in a field."""
    words = "--help-all" if command in COMMANDS_WITH_FIELDS else "--help"
    return f"`sa3-trainer {command} {words}` lists every field with its range."


def test_wrong_fields_exit_2_and_are_all_reported():
    done = call("run", "clips.zip", "--rank", "0", "--seed", "x", "--model", "huge")
    assert done.exit_code == 2
    assert [name for name in ("rank", "seed", "model") if f"  {name}: " not in done.stderr] == []


@pytest.mark.parametrize("command", ["run", "plan"])
def test_fields_of_stored_latents_are_refused_before_a_training_that_stores_none_but_not_by_encode(tmp_path, command):
    words = (str(tmp_path / "none.zip"), "--model", "tiny-base", "--latent-dtype", "float32")
    done = call(command, *words)
    assert done.exit_code == 2
    assert "latent_dtype: has no effect on a training that encodes inside its loop: add --pre-encode" in done.stderr
    for other in ("encode", "train"):
        assert "has no effect" not in call(other, *words, "--store", str(tmp_path / "store")).stderr


def test_wrong_fields_are_one_json_document_in_the_hosted_form():
    done = call("run", "clips.zip", "--rank", "999", "--json")
    entry = json.loads(done.stdout)["detail"][0]
    assert (entry["loc"], entry["type"], entry["input"]) == (["body", "rank"], "less_than_equal", "999")


def test_missing_data_exits_2_and_says_what_to_give(tmp_path):
    done = call("plan", str(tmp_path / "none.zip"), "--model", "tiny-base")
    assert done.exit_code == 2
    assert "no such file or folder. Give the path of a .zip or a folder" in done.stderr


def test_a_store_that_is_not_there_says_so_and_what_to_type(tmp_path):
    done = call("status", "--store", str(tmp_path / "none"))
    assert done.exit_code == 0
    assert "does not exist; `sa3-trainer run DATA" in done.stdout
    assert not (tmp_path / "none").exists()


def test_planning_writes_nothing(tmp_path):
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
    stages = json.loads(call(*words).stdout)["stages"]
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
    request = on_no_clips(tmp_path)
    done = call(*request, "--adapter-type", "lora-xs", "--rank", "200")
    assert done.exit_code == 2
    assert "rank: must be at most 128 here; got 200" in done.stderr
    named = call(*request, "--include", "layers[0-11]")
    assert named.exit_code == 2
    assert "model.transformer.layers.0." in named.stderr


def test_wrong_layers_and_a_wrong_rank_are_reported_together(tmp_path):
    store = on_no_clips(tmp_path)
    done = call(*store, "--adapter-type", "lora-xs", "--rank", "200", "--adapter-dropout", "0.5")
    assert done.exit_code == 2
    assert [
        name
        for name in ("rank: must be at most 128", "adapter_dropout: lora-xs has no dropout")
        if name not in done.stderr
    ] == []


def on_no_clips(tmp_path) -> list[str]:
    """A plan for an empty folder of clips."""
    (tmp_path / "clips").mkdir()
    return ["plan", str(tmp_path / "clips"), "--model", "tiny-base", "--store", str(tmp_path / "store")]


def test_an_adapter_file_that_does_not_fit_is_refused_before_anything_runs(tmp_path):
    import torch
    from safetensors.torch import save_file

    config = {"rank": 4, "alpha": 4.0, "adapter_type": "lora", "dropout": 0.0, "include": None, "exclude": None}
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"lora_config": json.dumps(config)})
    done = call(*on_no_clips(tmp_path), "--lora-checkpoint-url", str(tmp_path / "a.safetensors"))
    assert done.exit_code == 2
    assert "rank: is 4 in a.safetensors" in done.stderr
    assert "adapter_type: is 'lora' in a.safetensors" in done.stderr


@pytest.mark.parametrize("content", [b"\0\0", b"not safetensors at all, but long enough to hold a length"])
def test_a_file_that_is_not_an_adapter_is_refused_before_anything_runs(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    done = call(*on_no_clips(tmp_path), "--lora-checkpoint-url", str(tmp_path / "a.safetensors"))
    assert done.exit_code == 2
    assert (
        "lora_checkpoint_url: is not an adapter that can be read: it is neither a safetensors file nor a .ckpt"
        in done.stderr
    )


def test_tensors_that_do_not_fit_the_model_are_named_before_anything_runs(tmp_path):
    import torch
    from safetensors.torch import save_file

    layer = "model.transformer.layers.0.self_attn.to_out.parametrizations.weight.0."
    settings = {"rank": 2, "alpha": 2.0, "adapter_type": "lora", "include": ["layers.0.self_attn.to_out"]}
    file, fits = (
        tmp_path / "a.safetensors",
        {layer + "lora_A": torch.zeros(2, 192), layer + "lora_B": torch.zeros(192, 2)},
    )
    request = [*on_no_clips(tmp_path), "--lora-checkpoint-url", str(file), "--adapter-type", "lora", "--rank", "2"]
    request += ["--include", "layers.0.self_attn.to_out"]

    def said(tensors):
        save_file(tensors, file, metadata={"lora_config": json.dumps(settings)})
        return call(*request).stderr

    assert "lora_checkpoint_url" not in said(fits)
    assert f"missing: {layer}lora_B (192, 2)" in said({layer + "lora_A": torch.zeros(2, 192)})
    assert f"misshapen: {layer}lora_A is (2, 64), expected (2, 192)" in said(
        fits | {layer + "lora_A": torch.zeros(2, 64)}
    )
    other = "model.x.parametrizations.weight.0.lora_A"
    assert f"extra: {other} (2, 3)" in said(fits | {other: torch.zeros(2, 3)})
    assert "unknown tensor: x" in said(fits | {"x": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "tool"),
    [("base_model.model.a.lora_A.weight", "PEFT"), ("lora_unet_a.lora_down.weight", "kohya's scripts")],
)
def test_the_layout_of_another_tool_is_named_before_anything_runs(tmp_path, name, tool):
    import torch
    from safetensors.torch import save_file

    save_file({name: torch.zeros(2, 3)}, tmp_path / "a.safetensors")
    done = call(*on_no_clips(tmp_path), "--lora-checkpoint-url", str(tmp_path / "a.safetensors"))
    assert done.exit_code == 2
    assert f"layout of {tool}" in done.stderr


def test_an_xs_file_of_another_model_is_refused_before_anything_runs(tmp_path):
    import torch
    from safetensors.torch import save_file

    settings = {"rank": 2, "alpha": 2.0, "adapter_type": "lora-xs", "base_model": "sa3-medium"}
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"lora_config": json.dumps(settings)})
    request = [*on_no_clips(tmp_path), "--lora-checkpoint-url", str(tmp_path / "a.safetensors")]
    done = call(*request, "--adapter-type", "lora-xs", "--rank", "2")
    assert done.exit_code == 2
    assert (
        "model: a.safetensors was trained on medium-base, from whose weights its fixed directions come" in done.stderr
    )


def test_an_adapter_file_without_settings_is_refused_with_what_to_say(tmp_path):
    import torch
    from safetensors.torch import save_file

    layer = "model.project_in.parametrizations.weight.0."
    save_file({layer + "lora_A": torch.zeros(4, 8), layer + "lora_B": torch.zeros(6, 4)}, tmp_path / "a.safetensors")
    request = [*on_no_clips(tmp_path), "--lora-checkpoint-url", str(tmp_path / "a.safetensors")]
    done = call(*request)
    assert done.exit_code == 2
    assert "has no lora_config" in done.stderr
    assert "--rank 4" in done.stderr and "--adapter-type lora" in done.stderr
    assert "lora_config" not in call(*request, "--rank", "4", "--adapter-type", "lora").stderr


@pytest.mark.parametrize("flag", ["--store", "--output"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path, flag):
    (tmp_path / "clips").mkdir()
    (tmp_path / "file").write_text("in the way")
    places = {"--store": str(tmp_path / "store"), "--output": str(tmp_path / "out"), flag: str(tmp_path / "file")}
    done = call(
        "run", str(tmp_path / "clips"), "--model", "tiny-base", *(word for pair in places.items() for word in pair)
    )
    assert done.exit_code == 1
    assert f"{flag} {tmp_path / 'file'} cannot be written" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--device", "gpu"], "device: must be auto, cpu, cuda, cuda:1 and so on, or mps"),
        (["--name", "../escaped"], "name: must be a name, not a path"),
    ],
)
def test_a_name_or_device_of_the_wrong_form_is_a_wrong_field(words, says):
    done = call("run", "clips.zip", *words)
    assert done.exit_code == 2
    assert says in done.stderr


def test_an_empty_data_argument_is_not_the_current_folder():
    done = call("plan", "")
    assert done.exit_code == 2
    assert "audio_data_url" in done.stderr


def test_weights_of_another_model_are_refused_by_their_sizes(tmp_path):
    golden = Path(__file__).parent / "golden" / "tiny-s"
    (tmp_path / "clips").mkdir()
    done = call("plan", str(tmp_path / "clips"), "--model", "small-sfx-base", "--weights", str(golden))
    assert done.exit_code == 1
    assert "latent channels 16 where small-sfx-base has 256" in done.stderr


def test_the_weights_variable_does_not_replace_bundled_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("SA3_WEIGHTS", str(tmp_path / "nowhere"))
    assert call(*on_no_clips(tmp_path)).exit_code == 0


@pytest.mark.parametrize("command", ["run", "ingest", "encode", "train", "plan", "explain"])
def test_a_wrong_field_names_the_help_of_the_command_that_was_typed(command):
    done = call(command, "clips.zip", "--rank", "0")
    assert done.stderr.splitlines()[-1] == every_field(command)


@pytest.mark.parametrize("command", ["run", "encode", "train", "plan"])
def test_a_wrong_import_names_the_help_of_the_command_that_was_typed(tmp_path, command):
    done = call(command, "--import", str(tmp_path / "none"))
    assert done.stderr.splitlines()[-1] == every_field(command)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("evict", ["--older-than", "5X"]),
        ("evict", []),
        ("gc", ["--older-than", "5X"]),
        ("gc", ["--max-bytes", "5X"]),
    ],
)
def test_a_wrong_value_names_the_help_of_the_command_it_was_given_to(tmp_path, command, words):
    done = call(command, *words, "--store", str(tmp_path))
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == every_field(command)


def test_a_wrong_axis_of_bench_names_the_help_of_bench():
    done = call("bench", "--rank", "0")
    assert done.stderr.splitlines()[-1] == "`sa3-trainer bench --help` lists every field with its range."


def test_decay_magnitudes_is_refused_for_a_kind_without_magnitudes(tmp_path):
    words = ["run", str(tmp_path / "none.zip"), "--no-decay-magnitudes", "--adapter-type"]
    refused = [call(*words, kind).stderr for kind in ("lora", "lora-xs", "dora-rows", "bora-xs")]
    assert ["which has no magnitudes" in said for said in refused] == [True, True, False, False]
    assert "decay_magnitudes: has no effect on lora, which has no magnitudes: leave it out" in refused[0]
