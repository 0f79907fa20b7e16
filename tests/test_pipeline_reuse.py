"""How much work is repeated when a request changes, counted in the encoders."""

from __future__ import annotations

import io
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cache.store import Store
from pipeline.execution.runner import RunResult, run_until
from pipeline.plan.plan import plan
from pipeline.report import Report
from pipeline.request.recipe import read_recipe
from pipeline.request.resolve import resolve_inputs
from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.models.nets.text_encoder import TextEncoder
from stages.train.training import Training

FLAGS = {"model": "tiny-base", "number_of_steps": 2, "pre_encode": True, "rank": 2, "workers": 1}


def tone(seconds: float, hz: float) -> bytes:
    """A short stereo WAV."""
    time = np.arange(int(seconds * 44_100)) / 44_100
    wave = 0.3 * np.sin(2 * np.pi * hz * time) * np.exp(-time)
    held = io.BytesIO()
    soundfile.write(held, np.stack([wave, wave * 0.8], axis=1), 44_100, format="WAV", subtype="PCM_16")
    return held.getvalue()


CLIPS = {"low": (1.0, 110.0), "middle": (1.5, 220.0), "high/bright": (2.0, 880.0)}


def write_zip(path: Path, clips: dict[str, tuple[float, float]], captions: dict[str, str] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, (seconds, hz) in clips.items():
            archive.writestr(f"{name}.wav", tone(seconds, hz))
            archive.writestr(f"{name}.txt", (captions or {}).get(name, f"a {name} tone"))
    return path


@dataclass
class Work:
    """Counts clips and prompts that really go through the networks."""

    clips: int = 0
    prompts: list[str] = field(default_factory=list)


@pytest.fixture
def work(monkeypatch) -> Work:
    counted = Work()
    encode_clip, hidden_states = Autoencoder.encode_clip, TextEncoder.hidden_states

    def counting_encode(self, *args, **kwargs):
        counted.clips += 1
        return encode_clip(self, *args, **kwargs)

    def counting_states(self, prompts, *args, **kwargs):
        counted.prompts += list(prompts)
        return hidden_states(self, prompts, *args, **kwargs)

    monkeypatch.setattr(Autoencoder, "encode_clip", counting_encode)
    monkeypatch.setattr(TextEncoder, "hidden_states", counting_states)
    return counted


@pytest.fixture(scope="module")
def first_run(tmp_path_factory) -> Path:
    """A store after one run; each test works on a copy."""
    root = tmp_path_factory.mktemp("first")
    request(root, write_zip(root / "clips.zip", CLIPS))
    return root


@pytest.fixture
def root(first_run, tmp_path) -> Path:
    shutil.copytree(first_run, tmp_path / "copy")
    return tmp_path / "copy"


def request(root: Path, data: Path, **flags) -> RunResult:
    places = {"store": str(root / "artifacts"), "output": str(root / "output")}
    return run_until("train", read_recipe(str(data), {**FLAGS, **places, **flags}), Report())


def states(done: RunResult) -> dict[str, str]:
    return {run.stage.name: run.state.value for run in done.plan.runs}


def test_a_second_identical_run_does_nothing(root, work, capsys):
    before = {path: path.stat().st_mtime_ns for path in (root / "output").iterdir()}
    done = request(root, root / "clips.zip")
    assert states(done) == {"ingest": "HIT", "encode": "HIT", "train": "HIT"}
    assert (work.clips, work.prompts) == (0, [])
    assert {path: path.stat().st_mtime_ns for path in (root / "output").iterdir()} == before
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"rank": 3}, {"adapter_type": "lora"}, {"seed": 7}], ids=lambda change: next(iter(change))
)
def test_a_changed_rank_adapter_or_seed_trains_again_and_encodes_nothing(root, work, change):
    done = request(root, root / "clips.zip", **change)
    assert states(done) == {"ingest": "HIT", "encode": "HIT", "train": "MISS"}
    assert (work.clips, work.prompts) == (0, [])


def test_a_changed_duration_encodes_nothing(root, work):
    done = request(root, root / "clips.zip", duration=1.2)
    assert states(done) == {"ingest": "MISS", "encode": "MISS", "train": "MISS"}
    assert (work.clips, work.prompts) == (0, [])
    assert done.artifacts["encode"].facts["duration_seconds"] == 1.2


def test_one_more_clip_encodes_one_clip(root, work):
    more = write_zip(root / "clips.zip", CLIPS | {"new": (1.0, 330.0)})
    done = request(root, more)
    assert (work.clips, work.prompts) == (1, ["a new tone"])
    assert (done.artifacts["encode"].facts["num_encoded"], done.artifacts["encode"].facts["num_reused"]) == (1, 3)


def test_an_edited_caption_encodes_no_audio_and_one_prompt(root, work):
    edited = write_zip(root / "clips.zip", CLIPS, {"low": "a deep, soft tone"})
    request(root, edited)
    assert (work.clips, work.prompts) == (0, ["a deep, soft tone"])


def test_the_same_clips_in_a_folder_encode_nothing(root, work):
    folder = root / "folder"
    with zipfile.ZipFile(root / "clips.zip") as archive:
        archive.extractall(folder)
    done = request(root, folder)
    assert (work.clips, work.prompts) == (0, [])
    assert states(done)["train"] == "HIT"


def test_two_files_with_the_same_bytes_are_encoded_once(tmp_path, work):
    request(tmp_path, write_zip(tmp_path / "clips.zip", {"one": (1.0, 110.0), "two": (1.0, 110.0)}))
    assert work.clips == 2  # one clip, and the silence


def test_more_steps_continue_the_same_run(root, work):
    done = request(root, root / "clips.zip", number_of_steps=4)
    assert states(done)["train"] == "RESUME"
    fresh = request(root.parent / "fresh", root / "clips.zip", number_of_steps=4)
    assert outputs(root) == outputs(root.parent / "fresh")
    assert fresh.artifacts["train"].fingerprint == done.artifacts["train"].fingerprint


def test_another_precision_of_the_file_trains_no_step(root, work, monkeypatch):
    monkeypatch.setattr(Training, "advance", lambda self, batch: pytest.fail("a step was made"))
    before = outputs(root)
    done = request(root, root / "clips.zip", export_precision="fp32")
    assert states(done)["train"] == "RESUME"
    assert done.plan.runs[-1].reason == "continues the same run (export_precision fp16 -> fp32)"
    assert outputs(root) != before


def outputs(root: Path) -> bytes:
    return (root / "output" / "clips.safetensors").read_bytes()


def test_raw_audio_and_cached_latents_are_different_trainings(root, work):
    done = request(root, root / "clips.zip", pre_encode=False)
    assert states(done) == {"ingest": "HIT", "train": "MISS"}
    assert work.clips >= 2


def test_an_average_is_copied_beside_the_adapter_and_a_stale_one_gives_a_warning(root, capsys):
    done = request(root, root / "clips.zip", ema_decay=0.9, overwrite=True)
    averaged = root / "output" / "clips_ema.safetensors"
    assert averaged in done.files
    assert averaged.read_bytes() != outputs(root)
    request(root, root / "clips.zip", overwrite=True)
    assert "clips_ema.safetensors is from an earlier training" in capsys.readouterr().err


def test_a_plan_for_another_latent_format_says_that_latents_are_copied(root):
    flags = {"store": str(root / "artifacts"), "output": str(root / "output"), "latent_format": "hdf5"}
    recipe = read_recipe(str(root / "clips.zip"), {**FLAGS, **flags})
    _, encode, _ = plan(recipe, Store(recipe.store), resolve_inputs(recipe, fetch=False)).runs
    assert encode.reason.endswith("; 0 of 3 clips to encode, 3 copied from another format")
