"""The train stage: results, messages, stops and errors of whole trainings."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cache.manifest import read_rows
from stages.contract import Resources
from stages.errors import LossNotFinite, StepOutOfMemory, UnsupportedModelConfig
from stages.train import job, run
from stages.train.dataset import clips, examples, prompt_embeddings, sample_ranges
from stages.train.model.evaluation import TIMESTEPS, Evaluation
from stages.train.record.metrics import ClipRow
from tests.small_training import Bench, encoded, random_hidden, random_latents, weights


@pytest.fixture
def bench(tmp_path):
    return Bench.of_latents(tmp_path)


def spoilt(root, number):
    latents = random_latents((12, 20, 7))
    latents[number][3:5] = np.nan
    return Bench(root, encoded(root / "shared", root / "encoded", latents, random_hidden(3)))


def first_step_with(bench, clip_id, **changes):
    """Number, from 1, of the first step that meets a clip."""
    sound = Bench.of_latents(bench.root / "sound store")
    whole = sound.at("sound")
    whole.train(**changes)
    rows = read_rows(whole.directory / "metrics.parquet", ClipRow)
    return next(row.step for row in rows if row.clip_id == clip_id)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_clip_whose_latents_are_not_finite_stops_the_training_with_its_name(tmp_path, number):
    bench = spoilt(tmp_path, number)
    step = first_step_with(bench, f"clip{number}")
    with pytest.raises(LossNotFinite, match=f"loss is not finite at step {step}, on clips clip{number}") as caught:
        bench.train()
    assert (caught.value.step, caught.value.clip_ids) == (step, (f"clip{number}",))
    saved = [path.name for path in bench.directory.glob("checkpoints/*")]
    assert f"step-{step - 1:08d}" in saved or step == 1
    for tensors in bench.directory.glob("checkpoints/*/tensors.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(tensors).values())
    assert not (bench.directory / "adapter.safetensors").exists()
    assert list(bench.handed_out) == ([f"_{step - 1:06d}_stopped.safetensors"] if step > 1 else [])


def test_a_non_finite_step_that_is_noticed_late_has_the_same_number_and_leaves_the_same_state(tmp_path, monkeypatch):
    from stages.train import run
    from stages.train.loop import TrainingLoop

    class LateLoop(TrainingLoop):
        def __post_init__(self):
            super().__post_init__()
            self.checks_every_step = False

    at_once, late = spoilt(tmp_path, 1), spoilt(tmp_path, 1).at("late")
    for bench in (at_once, late):
        bench.resources = Resources(device="cpu", checkpoint_every=100, log_every=100)
        if bench is late:
            monkeypatch.setattr(run, "TrainingLoop", LateLoop)
        with pytest.raises(LossNotFinite) as caught:
            bench.train(number_of_steps=30)
        bench.step = caught.value.step
    assert at_once.step == late.step > 1
    saved = [one.bytes_of(f"checkpoints/step-{late.step - 1:08d}/tensors.safetensors") for one in (at_once, late)]
    assert saved[0] == saved[1]


def test_a_config_with_another_objective_is_refused(bench, monkeypatch):
    config = json.loads(json.dumps(weights().config))
    config["model"]["diffusion"]["diffusion_objective"] = "v"
    monkeypatch.setattr("tests.small_training.weights", lambda: replace(weights(), config=config))
    with pytest.raises(UnsupportedModelConfig, match="diffusion_objective"):
        bench.train()


def test_a_precision_the_device_lacks_is_replaced_with_a_warning_and_recorded(bench, monkeypatch):
    def lacking(wanted, device, say):
        if wanted is torch.bfloat16:
            say(f"{device} cannot compute in {wanted}")
            return torch.float32
        return wanted

    monkeypatch.setattr(job, "usable_dtype", lacking)
    bench.train(base_precision="bf16")
    warning, used = (line for line in bench.said if "cannot compute" in line or line.startswith("base model in"))
    assert warning == "cpu cannot compute in torch.bfloat16"
    assert used == "base model in fp32 (bf16 was requested), adapter in fp32"
    assert (bench.config["base_precision"], bench.config["base_precision_used"]) == ("bf16", "fp32")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_one_clip_is_enough(tmp_path, batch_size):
    bench = Bench.of_latents(tmp_path, (9,))
    bench.train(batch_size=batch_size)
    rows = read_rows(bench.directory / "metrics.parquet", ClipRow)
    assert {row.clip_id for row in rows} == {"clip0"}
    assert len(rows) == 4 * batch_size


def test_a_batch_larger_than_the_dataset_trains(bench):
    bench.train(batch_size=5)
    assert bench.config["steps_done"] == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 1},
        {"batch_size": 2},
        {"batch_size": 2, "gradient_accumulation": 2, "crop_seconds": True},
        {"frames_per_batch": 24, "gradient_accumulation": 2},
    ],
)
def test_both_sources_of_the_same_clips_give_the_same_losses(tmp_path, changes):
    from stages.models.load_weights import load_autoencoder, load_text_encoder
    from stages.prepared_audio import read_prepared

    live = Bench.of_audio(tmp_path, (30_000, 52_000, 20_000), window_samples=60_000)
    autoencoder, encoder = load_autoencoder(weights()), load_text_encoder(weights())
    audio = [read_prepared(live.root / "shared" / "prepared" / f"{number}.flac") for number in range(3)]
    silence = np.zeros((2, clips.SILENCE_FRAMES * 4096), dtype="float32")
    frames = [autoencoder.encode_clip(torch.from_numpy(each)).T.numpy() for each in [*audio, silence]]
    hidden = [each.float().detach().numpy() for each in encoder.hidden_states([f"prompt {n}" for n in range(3)])]
    artifact = encoded(tmp_path / "shared", tmp_path / "encoded", frames[:3], hidden, frames[3], window=15)
    stored = replace(live, artifact=artifact, name="stored")

    options = {"polarity_flip": False, "number_of_steps": 6, **changes}
    for bench in (live, stored):
        bench.train(**options)
    np.testing.assert_allclose(live.losses, stored.losses, rtol=0, atol=1e-5)


def test_training_from_stored_latents_loads_neither_autoencoder_nor_text_encoder(bench, monkeypatch):
    def refuse(*_):
        raise AssertionError("opened")

    monkeypatch.setattr(examples, "load_autoencoder", refuse)
    monkeypatch.setattr(prompt_embeddings, "load_text_encoder", refuse)
    bench.train()
    assert bench.config["steps_done"] == 4


@pytest.fixture
def embedded(monkeypatch):
    """Texts given to the text encoder."""
    texts = []
    load = prompt_embeddings.load_text_encoder

    class Counted:
        def __init__(self, *options):
            self.encoder = load(*options)

        def hidden_states(self, group):
            texts.extend(group)
            return self.encoder.hidden_states(group)

    monkeypatch.setattr(prompt_embeddings, "load_text_encoder", Counted)
    return texts


def test_each_prompt_goes_through_the_text_encoder_once(tmp_path, embedded):
    Bench.of_audio(tmp_path, (20_000, 30_000)).train(number_of_steps=6)
    assert sorted(embedded) == ["prompt 0", "prompt 1"]


def test_a_prompt_that_several_clips_share_is_embedded_once(embedded):
    found = prompt_embeddings.embed_prompts(["rain", "wind", "rain"], weights(), torch.device("cpu"))
    assert embedded == ["rain", "wind"]
    assert [states.dtype for states in found.lookup(["rain", "rain", "wind"])] == [torch.float32] * 3


def test_audio_that_fits_the_window_is_encoded_once_per_sign(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(
        sample_ranges, "read_prepared", lambda *a: reads.append(a) or np.zeros((2, a[2] - a[1]), "float32")
    )
    Bench.of_audio(tmp_path, (20_000,)).train(number_of_steps=20)
    assert len(reads) == 2


def test_a_step_that_does_not_fit_the_device_says_what_to_lower(bench, monkeypatch):
    from stages.train.training import Training

    advance = Training.advance

    def full(training, batch):
        if training.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        advance(training, batch)

    monkeypatch.setattr(Training, "advance", full)
    with pytest.raises(StepOutOfMemory, match=r"at step 3, with 1 x \d+ latent frames.*--batch-size"):
        bench.train()
    assert [path.name for path in bench.directory.glob("checkpoints/*")] == ["step-00000002"]


def test_slow_steps_have_progress_lines_between_the_intervals(bench, monkeypatch):
    from stages.train import loop

    monkeypatch.setattr(loop, "MAX_SECONDS_BETWEEN_LINES", 0.0)
    bench.resources = Resources(device="cpu", log_every=100)
    bench.train(number_of_steps=5)
    assert [done for done, _, _ in bench.told] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("losses", "harmed"), [((1.0, 2.0), True), ((2.0, 1.0), False)])
def test_a_training_that_makes_the_model_worse_says_so_at_its_end(bench, monkeypatch, losses, harmed):
    found = iter(losses)
    monkeypatch.setattr(run, "evaluate", lambda *given: Evaluation((next(found),) * len(TIMESTEPS)))
    bench.train(number_of_steps=1)
    assert any("worse than the model it started from" in line for line in bench.said) is harmed
