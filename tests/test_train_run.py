from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cache.manifest import read_rows
from stages.adapters import _file as adapter_file
from stages.contract import Resources
from stages.errors import AdapterMismatch, LossNotFinite, NetworkNotSupported, Stopped
from stages.train import clips, examples, job, prompts
from stages.train.metrics import ClipRow, StepRow
from tests.small_training import DIGESTS, Bench, encoded, params, random_hidden, random_latents, weights


@pytest.fixture
def bench(tmp_path):
    return Bench.of_latents(tmp_path)


@pytest.fixture(params=["stored", "live"])
def either(request, tmp_path):
    """Latents from the cache, or audio encoded in the loop; some of it longer than the window."""
    if request.param == "stored":
        return Bench.of_latents(tmp_path, (9, 14, 7), window=10)
    return Bench.of_audio(tmp_path, (30_000, 52_000, 20_000), window_samples=40_000)


# Going on ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["lora", "dora-rows"])
def test_a_training_stopped_anywhere_ends_as_one_that_was_not(either, kind, precision):
    options = {"adapter_type": kind, "base_precision": precision, "number_of_steps": 5, "batch_size": 2}
    whole = either.at("whole")
    whole.train(**options)

    for steps in (3, 1):
        with pytest.raises(Stopped, match=r"at step [34] of 5"):
            either.train(stop_after=steps, **options)
    either.train(**options)

    assert either.results() == whole.results()
    assert "going on from step 4" in either.said


@pytest.mark.parametrize("kind", ["lora", "dora-rows"])
def test_more_steps_go_on_from_a_shorter_artifact_of_the_same_run(bench, kind):
    whole, short = bench.at("whole"), bench.at("short")
    whole.train(number_of_steps=6, adapter_type=kind)
    short.train(number_of_steps=3, adapter_type=kind)

    bench.train(number_of_steps=6, adapter_type=kind, continued_from=short.directory)

    assert bench.said == ["going on from step 3"]
    assert bench.results() == whole.results()


def test_a_training_killed_between_checkpoints_ends_as_one_that_was_not(bench, monkeypatch):
    whole = bench.at("whole")
    whole.train(number_of_steps=7)

    def die(done, total, note=""):
        if done == 6:
            raise KeyboardInterrupt

    workspace = bench.workspace()
    monkeypatch.setattr(bench, "workspace", lambda *_: replace(workspace, progress=die))
    with pytest.raises(KeyboardInterrupt):
        bench.train(number_of_steps=7)
    monkeypatch.undo()
    bench.train(number_of_steps=7)

    assert bench.said == ["going on from step 4"]
    assert bench.results() == whole.results()


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(bench):
    whole = bench.at("whole")
    whole.train(number_of_steps=6)
    with pytest.raises(Stopped):
        bench.train(stop_after=5, number_of_steps=6)
    newest = bench.directory / "checkpoints" / "step-00000005" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])

    bench.train(number_of_steps=6)

    assert "step-00000005 is damaged" in bench.said[0]
    assert bench.said[1] == "going on from step 4"
    assert bench.results() == whole.results()


def test_adapter_dropout_survives_a_stop_and_leaves_torch_s_own_randomness_alone(bench):
    options = {"adapter_dropout": 0.3, "number_of_steps": 4}
    whole = bench.at("whole")
    before = torch.random.get_rng_state()
    whole.train(**options)
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(Stopped):
        bench.train(stop_after=3, **options)
    bench.train(**options)
    assert bench.results() == whole.results()


def test_a_stop_before_the_first_step_leaves_nothing_to_go_on_from(bench):
    with pytest.raises(Stopped, match="at step 0 of 4"):
        bench.train(stop_after=0)
    assert list(bench.directory.rglob("step-*")) == []


def test_checkpoints_of_other_params_are_not_gone_on_from(bench):
    other = bench.at("other")
    other.train(number_of_steps=2, seed=7)
    bench.train(continued_from=other.directory)
    assert "belongs to another training" in bench.said[0]
    assert bench.losses[:2] != other.losses


def test_fewer_steps_than_a_checkpoint_has_start_from_an_earlier_one(bench):
    with pytest.raises(Stopped):
        bench.train(stop_after=5, number_of_steps=6)
    bench.train(number_of_steps=4)
    assert "beyond the 4 steps" in bench.said[0]
    assert bench.config["steps_done"] == 4
    assert [path.name for path in bench.directory.glob("checkpoints/*")] == ["step-00000004"]


def test_intervals_of_checkpoints_and_lines_change_no_result(bench):
    often, never = bench.at("often"), bench.at("never")
    often.resources = Resources(device="cpu", checkpoint_every=1, keep_checkpoints=3, log_every=1)
    never.resources = Resources(device="cpu", checkpoint_every=100, log_every=100)
    for one in (often, never):
        one.train(number_of_steps=5)
    assert often.results() == never.results()


def test_the_finished_artifact_keeps_its_last_checkpoint_only(bench):
    bench.train(number_of_steps=5)
    assert [path.name for path in bench.directory.glob("checkpoints/*")] == ["step-00000005"]


# What goes wrong -----------------------------------------------------------------------------------------------


def spoilt(root, number):
    latents = random_latents((12, 20, 7))
    latents[number][3:5] = np.nan
    return Bench(root, encoded(root / "shared", root / "encoded", latents, random_hidden(3)))


def first_step_with(bench, clip_id, **changes):
    """Number, from 1, of the first step that meets a clip."""
    whole = bench.at("sound")
    sound = Bench.of_latents(bench.root / "sound store")
    whole = sound.at("sound")
    whole.train(**changes)
    rows = read_rows(whole.directory / "metrics.parquet", ClipRow)
    return next(row.step for row in rows if row.clip_id == clip_id)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_clip_whose_latents_are_not_finite_stops_the_training_by_name(tmp_path, number):
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


def test_a_device_that_is_looked_at_late_names_the_same_step_and_keeps_the_same_state(tmp_path, monkeypatch):
    from stages.train import run
    from stages.train.loop import Fit

    class LateFit(Fit):
        def __post_init__(self):
            super().__post_init__()
            self.looks_at_every_step = False

    at_once, late = spoilt(tmp_path, 1), spoilt(tmp_path, 1).at("late")
    for bench in (at_once, late):
        bench.resources = Resources(device="cpu", checkpoint_every=100, log_every=100)
        if bench is late:
            monkeypatch.setattr(run, "Fit", LateFit)
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
    with pytest.raises(NetworkNotSupported, match="diffusion_objective"):
        bench.train()


def test_a_precision_the_device_lacks_is_replaced_aloud_and_on_record(bench, monkeypatch):
    def lacking(wanted, device, say):
        if wanted is torch.bfloat16:
            say(f"{device} cannot compute in {wanted}")
            return torch.float32
        return wanted

    monkeypatch.setattr(job, "usable_dtype", lacking)
    bench.train(base_precision="bf16")
    assert bench.said == ["cpu cannot compute in torch.bfloat16"]
    assert (bench.config["base_precision"], bench.config["base_precision_used"]) == ("bf16", "fp32")


# Clips ---------------------------------------------------------------------------------------------------------


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


def test_both_sources_of_the_same_clips_give_the_same_losses(tmp_path):
    from stages.models._weights import load_autoencoder, load_text_encoder
    from stages.prepared import read_prepared

    live = Bench.of_audio(tmp_path, (30_000, 52_000, 20_000), window_samples=60_000)
    autoencoder, encoder = load_autoencoder(weights()), load_text_encoder(weights())
    audio = [read_prepared(live.root / "shared" / "prepared" / f"{number}.flac") for number in range(3)]
    silence = np.zeros((2, clips.SILENCE_FRAMES * 4096), dtype="float32")
    frames = [autoencoder.encode_clip(torch.from_numpy(each)).T.numpy() for each in [*audio, silence]]
    hidden = [each.float().detach().numpy() for each in encoder.hidden_states([f"prompt {n}" for n in range(3)])]
    artifact = encoded(tmp_path / "shared", tmp_path / "encoded", frames[:3], hidden, frames[3], window=15)
    stored = replace(live, artifact=artifact, name="stored")

    options = {"polarity_flip": False, "number_of_steps": 6, "batch_size": 2}
    for bench in (live, stored):
        bench.train(**options)
    np.testing.assert_allclose(live.losses, stored.losses, rtol=0, atol=1e-5)


def test_training_from_the_cache_opens_neither_autoencoder_nor_text_encoder(bench, monkeypatch):
    def refuse(*_):
        raise AssertionError("opened")

    monkeypatch.setattr(examples, "load_autoencoder", refuse)
    monkeypatch.setattr(prompts, "load_text_encoder", refuse)
    bench.train()
    assert bench.config["steps_done"] == 4


def test_each_prompt_goes_through_the_text_encoder_once(tmp_path, monkeypatch):
    seen = []
    load = prompts.load_text_encoder

    class Counted:
        def __init__(self, *options):
            self.encoder = load(*options)

        def hidden_states(self, texts):
            seen.extend(texts)
            return self.encoder.hidden_states(texts)

    monkeypatch.setattr(prompts, "load_text_encoder", Counted)
    Bench.of_audio(tmp_path, (20_000, 30_000)).train(number_of_steps=6)
    assert sorted(seen) == ["prompt 0", "prompt 1"]


def test_audio_that_fits_the_window_is_encoded_once_per_sign(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(clips, "read_prepared", lambda *a: reads.append(a) or np.zeros((2, a[2] - a[1]), "float32"))
    Bench.of_audio(tmp_path, (20_000,)).train(number_of_steps=20)
    assert len(reads) == 2


# What options do -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 2e-3},
        {"rank": 3},
        {"alpha": 1.0},
        {"adapter_type": "bora"},
        {"adapter_dropout": 0.5},
        {"include": ("cross_attn",)},
        {"exclude": ("to_out",)},
        {"batch_size": 2},
        {"seed": 43},
        {"base_precision": "bf16"},
        {"base_precision": "fp16"},
        {"betas": (0.8, 0.95)},
        {"eps": 1e-3},
        {"weight_decay": 0.5},
        {"cfg_dropout_prob": 1.0},
        {"mask_probabilities": (0.0, 0.0, 1.0)},
        {"mask_probabilities": (0.0, 0.0, 0.0, 1.0)},
        {"mask_probabilities": (0.0, 0.0, 1.0), "mask_loss_weight": 0.0},
        {"silence_extension_seconds": 0.1},
        {"timestep_truncation": 0.3},
    ],
    ids=str,
)
def test_every_option_changes_what_is_learnt(tmp_path_factory, change):
    root = tmp_path_factory.getbasetemp() / "options"
    plain = Bench.of_latents(root, (12, 20, 7), window=30).at("plain")
    if not plain.directory.exists():
        plain.train()
    changed = plain.at(f"changed {change}"[:60])
    changed.train(**change)
    assert changed.bytes_of("adapter_fp32.safetensors") != plain.bytes_of("adapter_fp32.safetensors")


def test_the_context_weight_counts(bench):
    for weight in (0.0, 1.0):
        bench.at(f"{weight}").train(mask_probabilities=(0.0, 0.0, 1.0), mask_loss_weight=weight)
    assert bench.at("0.0").bytes_of("adapter_fp32.safetensors") != bench.at("1.0").bytes_of("adapter_fp32.safetensors")


def test_pairing_noise_with_clips_counts_in_a_batch_and_only_there(bench):
    made = {}
    for batch_size in (1, 3):
        for paired in (True, False):
            one = bench.at(f"{batch_size} {paired}")
            one.train(batch_size=batch_size, optimal_transport=paired, number_of_steps=6)
            made[batch_size, paired] = load_file(one.directory / "adapter_fp32.safetensors")
    differs = {
        size: any(not torch.equal(made[size, True][k], made[size, False][k]) for k in made[size, True])
        for size in (1, 3)
    }
    assert differs == {1: False, 3: True}


def test_flipping_signs_counts_where_audio_is_encoded_in_the_loop(tmp_path):
    bench = Bench.of_audio(tmp_path, (20_000, 30_000))
    losses = {}
    for flipped in (True, False):
        one = bench.at(f"{flipped}")
        one.train(polarity_flip=flipped, number_of_steps=6)
        losses[flipped] = one.losses
    assert losses[True] != losses[False]


def test_a_withheld_prompt_has_no_influence_at_all(tmp_path):
    latents = random_latents((12, 20, 7))
    learnt = {}
    for share in (1.0, 0.0):
        for seed in (6, 60):
            root = tmp_path / f"{share} {seed}"
            artifact = encoded(root / "shared", root / "encoded", latents, random_hidden(3, seed))
            bench = Bench(root, artifact)
            bench.train(cfg_dropout_prob=share)
            learnt[share, seed] = bench.losses
    assert learnt[1.0, 6] == learnt[1.0, 60]
    assert learnt[0.0, 6] != learnt[0.0, 60]


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_losses_in_half_precision_are_those_of_full_precision_to_rounding(bench, precision, tolerance):
    # One timestep rounding apart: the network is told t in its own precision, where features of t turn fast.
    full, half = bench.at("full"), bench.at("half")
    full.train()
    half.train(base_precision=precision)
    np.testing.assert_allclose(half.losses, full.losses, rtol=tolerance)
    assert half.config["base_precision_used"] == precision


def test_training_lowers_the_loss_that_can_be_compared(bench):
    facts = bench.train(number_of_steps=30, batch_size=3, learning_rate=3e-3, rank=8, include=None).facts
    assert facts["loss_after"] < 0.95 * facts["loss_before"]


# What is left --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "dora-rows", "bora-xs"])
def test_the_adapter_file_holds_the_trained_values_and_says_what_they_are(bench, kind):
    bench.train(adapter_type=kind, include=("self_attn", "project"))
    exported = adapter_file.read(bench.directory / "adapter.safetensors")
    trained = adapter_file.read(bench.directory / "adapter_fp32.safetensors")
    saved = load_file(bench.directory / "checkpoints" / "step-00000004" / "tensors.safetensors")
    assert exported.spec == trained.spec
    assert (exported.spec.kind, exported.spec.rank, exported.spec.include) == (kind, 2, ("self_attn", "project"))
    assert {f"adapter.{key}" for key in trained.tensors} == {key for key in saved if key.startswith("adapter.")}
    for key, tensor in trained.tensors.items():
        assert torch.equal(tensor, saved[f"adapter.{key}"])
        assert torch.equal(exported.tensors[key], tensor.half().float())
    told = {key: value for key, value in exported.metadata.items() if key != "lora_config"}
    origin = {"base_model": "tiny-base", "base_model_name": "tiny-base", "base_digest": DIGESTS["transformer"]}
    assert told == {**origin, "step": "4"}


def test_the_exported_file_is_fp32_when_asked(bench):
    bench.train(export_precision="fp32")
    assert bench.bytes_of("adapter.safetensors") == bench.bytes_of("adapter_fp32.safetensors")


def test_metrics_have_a_row_per_clip_and_step_that_add_up(bench):
    bench.train(batch_size=2, number_of_steps=5, mask_probabilities=(0.5, 0.0, 0.5), mask_loss_weight=0.5)
    rows = read_rows(bench.directory / "metrics.parquet", ClipRow)
    steps = read_rows(bench.directory / "steps.parquet", StepRow)
    assert [row.step for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [row.step for row in steps] == [1, 2, 3, 4, 5]
    for step in steps:
        own = [row for row in rows if row.step == step.step]
        assert sum(row.loss for row in own) / 2 == pytest.approx(step.loss, rel=1e-6)
        assert step.learning_rate == 1e-3
        assert step.gradient_norm > 0
    assert all(row.loss == pytest.approx(row.generated_loss + 0.5 * row.context_loss) for row in rows)
    assert all(0 < row.timestep < 1 for row in rows)
    assert any(row.context_loss > 0 for row in rows)


def test_metrics_tell_where_a_long_clip_was_cropped(tmp_path):
    bench = Bench.of_latents(tmp_path, (40,), window=10)
    bench.train(number_of_steps=8)
    starts = {row.crop_start for row in read_rows(bench.directory / "metrics.parquet", ClipRow)}
    assert len(starts) > 3
    assert all(start % 4096 == 0 and 0 <= start <= 30 * 4096 for start in starts)


def test_progress_tells_loss_rate_speed_and_time_left(bench):
    bench.train(number_of_steps=5)
    assert [(done, total) for done, total, _ in bench.told] == [(1, 5), (2, 5), (4, 5), (5, 5)]
    for _, _, note in bench.told:
        assert all(word in note for word in ("loss ", "lr 0.001", "steps/s", "left"))


CONFIG_TYPES = {
    **{"format_version": int, "model": str, "inference_model": str, "base_model_repo": (str, type(None))},
    **{"base_digest": str, "weights_digests": dict, "number_of_steps": int, "learning_rate": float, "rank": int},
    **{"alpha": float, "adapter_type": str, "adapter_dropout": float, "include": (list, type(None))},
    **{"exclude": (list, type(None)), "batch_size": int, "seed": int, "base_precision": str, "pre_encode": bool},
    **{"lora_checkpoint": (str, type(None)), "export_precision": str, "betas": list, "eps": float},
    **{"weight_decay": float, "cfg_dropout_prob": float, "mask_probabilities": list, "mask_loss_weight": float},
    **{"silence_extension_seconds": float, "timestep_truncation": float, "optimal_transport": bool},
    **{"polarity_flip": bool, "autoencoder_precision": str, "duration": float, "base_precision_used": str},
    **{"rank_limit": int, "dataset": dict, "steps_done": int, "trainable_parameters": int, "adapted_layers": int},
    **{"loss_window_steps": int, "final_loss": float, "best_loss": float, "best_loss_step": int},
    **{"loss_before": float, "loss_after": float, "loss_by_timestep": list, "seconds_per_step": float},
    **{"device": str, "times": dict, "versions": dict},
}


def test_the_config_has_every_field_and_each_of_its_type(bench):
    bench.train()
    config = bench.config
    assert config.keys() == CONFIG_TYPES.keys()
    wrong = {name: value for name, value in config.items() if not isinstance(value, CONFIG_TYPES[name])}
    assert wrong == {}


def test_the_config_says_what_was_found(bench):
    bench.train(adapter_type="dora", number_of_steps=4, include=None)
    config = bench.config
    assert config["adapter_type"] == "dora-rows"
    assert config["inference_model"] == "tiny"
    assert config["duration"] == 20 * 4096 / 44_100
    assert config["rank_limit"] == 16
    assert config["dataset"] == {
        "fingerprint": bench.artifact.fingerprint,
        "artifact": {"stage": "encode", "fingerprint": bench.artifact.fingerprint},
        "num_clips": 3,
        "window_samples": 20 * 4096,
        "window_frames": 20,
    }
    trained = load_file(bench.directory / "adapter_fp32.safetensors")
    assert config["trainable_parameters"] == sum(tensor.numel() for tensor in trained.values())
    assert config["final_loss"] == pytest.approx(np.mean(bench.losses))
    assert [row["timestep"] for row in config["loss_by_timestep"]] == [0.1, 0.3, 0.5, 0.7, 0.9]
    before = [row["before"] for row in config["loss_by_timestep"]]
    assert config["loss_before"] == pytest.approx(np.mean(before))


def test_the_facts_are_the_config_s_own(bench):
    outcome = bench.train()
    assert outcome.facts == {name: bench.config[name] for name in outcome.facts}
    assert {"final_loss", "steps_done", "trainable_parameters", "loss_before", "loss_after"} <= outcome.facts.keys()


# Starting from an adapter file ---------------------------------------------------------------------------------


def start_of(bench, **changes):
    first = bench.at("first")
    first.train(number_of_steps=2, **changes)
    return {
        "lora_checkpoint": "sha256:first",
        "files": {"lora_checkpoint": first.directory / "adapter_fp32.safetensors"},
    }


def test_a_training_may_start_from_an_adapter_file(bench):
    start = start_of(bench)
    facts = bench.train(**start).facts
    assert facts["loss_before"] == pytest.approx(bench.at("first").config["loss_after"], rel=1e-6)


def test_an_adapter_file_brings_its_alpha(bench):
    bench.train(**start_of(bench, alpha=7.0))
    assert bench.config["alpha"] == 7.0
    assert adapter_file.read(bench.directory / "adapter.safetensors").spec.alpha == 7.0


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"rank": 4}, "rank is 2 there, 4 here"),
        ({"adapter_type": "lora"}, "adapter_type is dora-rows there, lora here"),
        ({"alpha": 9.0}, "alpha is 2.0 there, 9.0 here"),
        ({"include": ("self_attn",)}, r"include is \('layers.0.self_attn',\) there, \('self_attn',\) here"),
    ],
)
def test_an_adapter_file_that_does_not_fit_is_refused_with_the_difference(bench, change, difference):
    start = start_of(bench)
    with pytest.raises(AdapterMismatch, match=difference):
        bench.train(**start, **change)


def test_an_adapter_of_other_base_weights_is_used_aloud(bench, monkeypatch):
    start = start_of(bench)
    other = replace(weights(), digests={**DIGESTS, "transformer": "u" * 64})
    monkeypatch.setattr("tests.small_training.weights", lambda: other)
    bench.train(**start)
    assert "was trained on other base weights: tttttttt, here uuuuuuuu" in bench.said[0]


def test_params_for_tests_are_the_product_s(bench):
    assert params().cfg_dropout_prob == 0.1
