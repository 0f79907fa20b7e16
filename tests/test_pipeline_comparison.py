"""generate --compare and --like: the base beside the adapter, and how far both are from clips of a style."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import Result
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.example_style import style_clips

FAMILY = Path(__file__).parent / "golden" / "tiny-s"
ADAPTER = FAMILY / "adapters" / "bora_r1.safetensors"
BASE, ADAPTED, RECORD = "a_pluck_7_base.wav", "a_pluck_7_adapted.wav", "a_pluck_7_compared.json"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SA3_WEIGHTS", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def style(tmp_path_factory) -> Path:
    """Three short clips, of three formats, rates and lengths, and a file that is none."""
    folder, random = tmp_path_factory.mktemp("style"), np.random.default_rng(0)
    for name, rate_hz, seconds in (("a.wav", 44_100, 1.2), ("b.flac", 48_000, 1.5), ("c.ogg", 22_050, 2.0)):
        tone_X = np.sin(np.arange(round(seconds * rate_hz)) * random.uniform(0.05, 0.2))
        soundfile.write(folder / name, 0.5 * tone_X, rate_hz)
    (folder / "notes.txt").write_text("no clip")
    return folder


def called(*words: str, adapter: Path | None = ADAPTER, seconds: str = "1", steps: str = "1") -> Result:
    """`generate` with the small recorded family, under the name of a base model."""
    model = ["--model", "medium-base", "--weights", str(FAMILY), "--steps", steps, "--seconds", seconds]
    uses = [] if adapter is None else ["--adapter", str(adapter)]
    return CliRunner().invoke(app, ["generate", "a pluck", *model, "--seed", "7", *uses, *words])


def document(done: Result) -> dict:
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(done: Result) -> dict[str, str]:
    """Field and message of everything that is wrong with a command line."""
    assert done.exit_code == 2, done.output
    return {entry["loc"][-1]: entry["msg"] for entry in json.loads(done.stdout)["detail"]}


def outputs(place: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((place / "output").iterdir())}


def test_the_base_is_written_beside_the_adapted_sound(place):
    assert called("--compare").exit_code == 0
    assert set(outputs(place)) == {BASE, ADAPTED, RECORD}


def test_both_are_what_generate_makes_of_each_alone(place):
    called("--compare")
    called("--out", "adapted.wav")
    called("--out", "base.wav", adapter=None)
    alone = [(place / name).read_bytes() for name in ("base.wav", "adapted.wav")]
    assert [outputs(place)[name] for name in (BASE, ADAPTED)] == alone
    assert alone[0] != alone[1]


def test_a_name_given_is_the_stem_of_both(place):
    called("--compare", "--out", "sounds/x.flac")
    names = sorted(file.name for file in (place / "sounds").iterdir())
    assert names == ["x_adapted.flac", "x_base.flac", "x_compared.json"]


def test_the_same_command_again_makes_nothing(place, monkeypatch):
    first = document(called("--compare", "--json"))
    before = outputs(place)
    monkeypatch.setattr("stages.generate.run.generate_files", lambda *_, **__: pytest.fail("generated"))
    again = called("--compare", "--json")
    assert document(again) == first
    assert "nothing to do" in again.stderr
    assert outputs(place) == before


@pytest.mark.parametrize("change", [["--cfg", "2"], ["--base-precision", "bf16"]], ids=" ".join)
def test_another_request_gets_names_of_its_own(place, change):
    called("--compare")
    before = outputs(place)
    called("--compare", *change)
    after = outputs(place)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {f"a_pluck_7_2_{end}" for end in ("base.wav", "adapted.wav", "compared.json")}


def test_another_request_replaces_files_of_a_name_given(place):
    called("--compare", "--out", "x.wav")
    before = (place / "x_adapted.wav").read_bytes()
    called("--compare", "--out", "x.wav", steps="2")
    assert (place / "x_adapted.wav").read_bytes() != before


def test_an_adapter_of_another_strength_is_another_request(place):
    called("--compare", "--out", "x.wav")
    before = (place / "x_adapted.wav").read_bytes()
    called("--compare", "--out", "x.wav", adapter=Path(f"{ADAPTER}:0.5"))
    assert (place / "x_adapted.wav").read_bytes() != before


@pytest.mark.parametrize("name", [BASE, ADAPTED, RECORD])
@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"{}")])
def test_what_is_lost_or_changed_is_made_again(place, name, damage):
    called("--compare", "--out", "output/a_pluck_7.wav")
    before = outputs(place)
    damage(place / "output" / name)
    called("--compare", "--out", "output/a_pluck_7.wav")
    after = outputs(place)
    assert [after[file] == before[file] for file in (BASE, ADAPTED)] == [True, True]
    assert RECORD in after


def test_the_distance_of_both_to_the_clips_is_in_the_document_and_in_one_line(place, style):
    done = called("--compare", "--like", str(style), "--json")
    found = document(done)["style_distance"]
    assert (found["clips"], found["num_clips"], found["compared_seconds"]) == (str(style), 3, 1.0)
    assert {(name, way) for name in ("base", "adapted") for way in found[name]} == {
        (name, way) for name in ("base", "adapted") for way in ("spectral", "embedding")
    }
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("style distance"))
    assert f"base {found['base']['spectral']:.2f}, adapted {found['adapted']['spectral']:.2f}" in line


def test_a_clip_of_the_style_is_nearer_to_it_than_noise():
    import torch

    from stages.generate.style_clips import StyleClips

    audio = [torch.from_numpy(clip.synth(None, 1.5, 44_100).T).float() for clip in style_clips(4)]
    noise_AX = torch.rand(2, 66_150, generator=torch.Generator().manual_seed(0)) - 0.5
    clips = StyleClips(where=Path("clips"), wanted_BAX=torch.stack(audio[1:]))
    found = clips.distances({"clip": audio[0], "noise": noise_AX})
    assert all(found["clip"][way] < 2 < found["noise"][way] for way in ("spectral", "embedding"))


def test_the_distance_of_a_sound_alone_is_told_too(place, style):
    found = document(called("--like", str(style), "--json", adapter=None))["style_distance"]
    assert set(found["generated"]) == {"spectral", "embedding"}


def test_sounds_are_compared_as_far_as_the_shortest_clip_goes(place, style):
    done = called("--like", str(style), "--json", adapter=None, seconds="3")
    assert document(done)["style_distance"]["compared_seconds"] == 1.2


def test_clips_of_another_folder_are_another_request(place, style):
    called("--compare", "--out", "x.wav")
    done = called("--compare", "--like", str(style), "--out", "x.wav", "--json")
    assert "style_distance" in document(done)


def test_a_sound_that_is_nearly_silent_is_said(place, monkeypatch):
    import torch

    monkeypatch.setattr("stages.generate.run.generate", lambda *_: [torch.full((2, 44_100), 0.001)])
    assert f"{BASE} is nearly silent: its peak is 60 dB below full scale" in called("--compare").stderr


def test_a_comparison_without_an_adapter_is_refused(place):
    assert "--adapter" in refused(called("--compare", "--json", adapter=None))["compare"]


def test_clips_that_are_not_there_are_refused_before_anything_is_loaded(place):
    assert "no folder" in refused(called("--like", "none", "--json"))["like"]


def test_a_sound_too_short_to_compare_is_refused(place, style):
    assert "at least 1" in refused(called("--like", str(style), "--json", seconds="0.5"))["seconds"]


def test_every_clip_that_cannot_be_compared_is_named(place, style):
    clips = place / "clips"
    clips.mkdir()
    soundfile.write(clips / "short.wav", np.full(22_050, 0.5), 44_100)
    soundfile.write(clips / "silent.wav", np.zeros(66_150), 44_100)
    (clips / "cut.wav").write_bytes((style / "a.wav").read_bytes()[:-1000])
    done = called("--compare", "--like", str(clips))
    assert done.exit_code == 1
    assert "3 problems" in done.stderr
    assert all(name in done.stderr for name in ("short.wav", "silent.wav", "cut.wav"))
    assert not (place / "output").exists()


def test_one_clip_is_no_style_not_even_twice(place, style):
    clips = place / "clips"
    clips.mkdir()
    for name in ("a.wav", "again.wav"):
        (clips / name).write_bytes((style / "a.wav").read_bytes())
    done = called("--like", str(clips))
    assert done.exit_code == 1
    assert "at least 2" in done.stderr


def test_an_adapter_that_does_not_fit_leaves_no_files(place):
    (place / "a.safetensors").write_bytes(b"no adapter")
    assert called("--compare", adapter=place / "a.safetensors").exit_code == 1
    assert not (place / "output").exists()


def test_a_place_that_cannot_be_written_is_one_line(place):
    (place / "file").write_text("no folder")
    done = called("--compare", "--out", "file/x.wav")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
