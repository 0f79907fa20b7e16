"""The command generate: the file it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
from click.testing import Result
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.generate.request import free_name, playable_models

FAMILY = Path(__file__).parent / "golden" / "tiny-s"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SA3_WEIGHTS", raising=False)
    return tmp_path


def called(*words: str) -> Result:
    return CliRunner().invoke(app, ["generate", *words])


def short(*words: str) -> Result:
    """A clip of one step with the small recorded family, under the name of a base model."""
    return called(
        "a pluck", "--model", "medium-base", "--weights", str(FAMILY), "--steps", "1", "--seconds", "0.5", *words
    )


def refused(*words: str) -> dict[str, str]:
    """Field and message of everything that is wrong with a command line."""
    done = called(*words, "--json")
    assert done.exit_code == 2, done.output
    return {entry["loc"][-1]: entry["msg"] for entry in json.loads(done.stdout)["detail"]}


def test_it_writes_a_wav_file_of_24_bits_named_by_prompt_and_seed(place):
    assert short("--seed", "7").exit_code == 0
    found = soundfile.info(place / "output" / "a_pluck_7.wav")
    assert (found.frames, found.samplerate, found.channels, found.subtype) == (22_050, 44_100, 2, "PCM_24")


def test_a_name_that_ends_in_flac_gives_flac(place):
    assert short("--out", "sounds/x.flac").exit_code == 0
    assert soundfile.info(place / "sounds" / "x.flac").format == "FLAC"


def test_a_drawn_seed_is_named_and_gives_the_sound_again(place):
    facts = json.loads(short("--out", "a.wav", "--json").stdout)
    short("--out", "b.wav", "--seed", str(facts["seed"]))
    assert (place / "a.wav").read_bytes() == (place / "b.wav").read_bytes()


def test_an_earlier_sound_of_the_same_name_is_kept(place):
    short("--seed", "7")
    short("--seed", "7")
    assert sorted(path.name for path in (place / "output").iterdir()) == ["a_pluck_7.wav", "a_pluck_7_2.wav"]


def test_adapters_and_strengths_are_in_the_document(place):
    file = str(FAMILY / "adapters" / "lora_r1.safetensors")
    facts = json.loads(short("--adapter", f"{file}:0.5", "--adapter", file, "--json").stdout)
    assert facts["adapters"] == [{"file": file, "strength": 0.5}, {"file": file, "strength": 1.0}]


def test_every_wrong_value_is_listed_at_once(place):
    wrong = refused(" ", "--model", "large", "--steps", "0", "--device", "abacus", "--out", "a.mp3", "--adapter", "no")
    assert set(wrong) == {"prompt", "model", "steps", "device", "out", "adapter"}


def test_a_duration_beyond_the_native_length_is_refused(place):
    assert "at most 120" in refused("x", "--model", "small-sfx", "--seconds", "121")["seconds"]


def test_weights_of_a_base_model_are_not_taken_for_the_inference_model(place):
    assert "--model medium-base" in refused("x", "--model", "medium", "--weights", str(FAMILY))["model"]


def test_a_negative_prompt_that_would_be_ignored_is_refused(place):
    wrong = refused("x", "--model", "medium-base", "--weights", str(FAMILY), "--cfg", "1", "--negative-prompt", "hiss")
    assert "cfg" in wrong["negative_prompt"]


def test_a_strength_that_is_no_number_is_told_from_a_file_that_is_not_there(place):
    (place / "a.safetensors").write_bytes(b"")
    assert (
        "must be a number, such as a.safetensors:0.5; got 'half'"
        in refused("a pad", "--adapter", "a.safetensors:half")["adapter"]
    )
    assert "there is no file b.safetensors" in refused("a pad", "--adapter", "b.safetensors")["adapter"]


def test_a_file_that_is_no_adapter_is_an_error(place):
    (place / "a.safetensors").write_bytes(b"no adapter")
    done = short("--adapter", "a.safetensors")
    assert done.exit_code == 1
    assert "a.safetensors" in done.stderr


def test_the_inference_models_are_played_by_their_own_repositories():
    assert playable_models()["small-music"].repo == "stabilityai/stable-audio-3-small-music"


def test_the_bundled_model_is_its_own_inference_model():
    assert playable_models()["tiny"].name == "tiny-base"


@pytest.mark.parametrize(("prompt", "name"), [("Ünï! 4/4", "ünï_4_4_1.wav"), ("...", "sound_1.wav")])
def test_a_file_name_holds_words_of_the_prompt_only(tmp_path, prompt, name):
    assert free_name(tmp_path, prompt, 1).name == name
