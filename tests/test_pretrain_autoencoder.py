"""Training of tiny-base's autoencoder, in a few steps on the CPU."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.pretrain.autoencoder.architecture import Shape, model_config
from stages.pretrain.autoencoder.checkpoint import load_weights, restore, save, save_weights
from stages.pretrain.autoencoder.discriminator import Discriminator, judging_loss, random_crops
from stages.pretrain.autoencoder.figures import figures, si_sdr
from stages.pretrain.autoencoder.initialisation import block_matrices, initialise
from stages.pretrain.autoencoder.losses import AudioDistances, latent_divergence
from stages.pretrain.autoencoder.optimizer import orthogonalised
from stages.pretrain.autoencoder.recipe import Recipe
from stages.pretrain.autoencoder.run import main
from stages.pretrain.autoencoder.sounds import SoundPool
from stages.pretrain.autoencoder.step import TrainingStep
from stages.pretrain.autoencoder.variety import as_recorded, varied
from stages.pretrain.rate_schedule import recipe_with

SHAPE = Shape(latent_channels=16, width=64, encoder_depth=2, decoder_depth=2)
RECIPE = Recipe(shape=SHAPE, batch_size=1, num_frames=2, warm_up_steps=1)
CARRIED = Path(__file__).parents[1] / "stages/pretrain/carried/autoencoder.safetensors"


def tone(num_samples: int = 8192, hz: float = 220.0) -> torch.Tensor:
    time = torch.arange(num_samples) / 44_100
    left = 0.4 * torch.sin(2 * torch.pi * hz * time)
    return torch.stack([left, 0.5 * left])[None]


@pytest.fixture
def step():
    made = TrainingStep(RECIPE, torch.device("cpu"))
    made.audio_BAX.copy_(tone())
    return made


def test_audio_that_is_equal_has_no_distance():
    distances = AudioDistances(1e-4)(tone(), tone())
    assert [float(one) for one in distances] == pytest.approx([0, 0, 0, 0, 0], abs=1e-5)


def test_a_lost_side_channel_has_a_distance_although_the_mid_is_kept():
    wanted = torch.cat([tone(hz=220)[:, :1], tone(hz=330)[:, :1]], dim=1)
    mono = wanted.mean(dim=1, keepdim=True).expand_as(wanted)
    assert float(AudioDistances(1e-4)(mono, wanted).waveform) > 0.2


def test_noise_at_half_its_level_has_a_distance_and_other_noise_has_far_less():
    generator = torch.Generator().manual_seed(0)
    wanted, other = (0.1 * torch.randn(1, 2, 8192, generator=generator) for _ in range(2))
    distances = AudioDistances(1e-4)
    assert float(distances(wanted / 2, wanted).level) == pytest.approx(math.log(2), abs=0.03)
    assert float(distances(other, wanted).level) < 0.25


def test_unit_normal_latents_have_almost_no_divergence_and_scaled_ones_do():
    unit = torch.randn(64, 4, 512, generator=torch.Generator().manual_seed(0))
    assert float(latent_divergence(unit)) < 1e-3 < float(latent_divergence(2 * unit))


def test_the_start_ties_every_patch_to_its_latent_frame():
    eight_heads = replace(SHAPE, width=128, head_width=16)
    autoencoder = Autoencoder(model_config(eight_heads))
    initialise(autoencoder, 0)
    noise = 0.15 * torch.randn(1, 2, 8192, generator=torch.Generator().manual_seed(1))
    whole = autoencoder.encode(noise)
    for patch in range(16):
        changed = noise.clone()
        changed[..., patch * 256 : (patch + 1) * 256] = 0
        assert (autoencoder.encode(changed) - whole)[..., 0].norm() > 0.1 * whole[..., 0].norm()


def test_the_start_is_a_near_linear_codec():
    autoencoder = Autoencoder(model_config(SHAPE))
    initialise(autoencoder, 0)
    generator = torch.Generator().manual_seed(1)
    one, other = (0.05 * torch.randn(1, 2, 8192, generator=generator) for _ in range(2))
    silence = autoencoder.encode(torch.zeros_like(one))
    summed = autoencoder.encode(one + other) - silence
    apart = autoencoder.encode(one) + autoencoder.encode(other) - 2 * silence
    assert (summed - apart).norm() < 0.5 * summed.norm()


def test_the_same_seed_starts_with_the_same_weights():
    first, second = (TrainingStep(RECIPE, torch.device("cpu")).trainee.state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_few_steps_lower_the_loss(step):
    def log_mel() -> float:
        return float(step.distances(step.trainee.round_trip(tone()), tone()).log_mel)

    first = log_mel()
    for _ in range(10):
        step()
    assert log_mel() < 0.7 * first


def test_the_discriminator_takes_part_where_it_has_a_weight():
    made = TrainingStep(replace(RECIPE, adversarial=0.1), torch.device("cpu"))
    made.audio_BAX.copy_(tone())
    made()
    assert made.terms()["features"] > 0


def test_the_discriminator_judges_the_same_places_of_both():
    audio = torch.arange(3 * 2 * 40_000).view(3, 2, -1).float()
    one, other = random_crops(audio, audio + 0.5)
    assert one.shape == (3, 2, 16384) and torch.equal(one + 0.5, other)


def test_a_few_steps_teach_the_discriminator_silence_from_a_tone():
    torch.manual_seed(0)
    discriminator, batch = Discriminator(), torch.cat([tone(4096), torch.zeros(1, 2, 4096)])
    optimizer = torch.optim.Adam(discriminator.parameters(), 3e-3)
    for _ in range(12):
        loss = judging_loss(discriminator(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1.5


def test_the_weight_of_the_discriminator_rises_along_its_ramp():
    recipe = Recipe(adversarial=0.4, adversarial_ramp=(0.2, 0.4))
    assert [recipe.adversarial_at(share) for share in (0, 0.3, 1)] == pytest.approx([0, 0.2, 0.4])


def test_training_the_decoder_only_leaves_the_latents_alone():
    made = TrainingStep(replace(RECIPE, decoder_only=True), torch.device("cpu"))
    made.audio_BAX.copy_(tone())
    before = made.trainee.latents(made.trainee.features(tone()))
    made()
    assert torch.equal(made.trainee.latents(made.trainee.features(tone())), before)


def test_a_run_of_the_decoder_only_writes_the_encoder_back_byte_for_byte(tmp_path):
    made = TrainingStep(RECIPE, torch.device("cpu"))
    save_weights(made, tmp_path / "start.safetensors")
    before = load_file(tmp_path / "start.safetensors")
    shape = ["latent_channels=16", "width=64", "decoder_depth=2", "batch_size=1", "num_frames=2", "warm_up_steps=1"]
    options = ["--pool", "2", "--held-out", "2", "--most-steps", "2", "--seconds", "60", "--varied", "--recorded"]
    settings = [*shape, "decoder_only=true", "adversarial=0.02", "adversarial_ramp=[0.0,0.5]", "level=1.0"]
    main([str(tmp_path), "--start", str(tmp_path / "start.safetensors"), *options, "--set", *settings])
    after = load_file(tmp_path / "autoencoder.safetensors")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)


def test_a_checkpoint_goes_on_exactly(step, tmp_path):
    step()
    save(step, 1, tmp_path / "one.checkpoint")
    step()
    other = TrainingStep(RECIPE, torch.device("cpu"))
    other.audio_BAX.copy_(tone())
    assert restore(other, tmp_path / "one.checkpoint") == 1
    other()
    expected = step.trainee.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.trainee.state_dict().items())


def test_saved_weights_load_strictly_into_the_products_own_autoencoder(step, tmp_path):
    save_weights(step, tmp_path / "a.safetensors")
    stored, network = load_file(tmp_path / "a.safetensors"), Autoencoder(model_config(SHAPE))
    network.load_state_dict(stored)
    assert all(torch.equal(value.half(), stored[name].half()) for name, value in network.state_dict().items())


def test_a_run_started_from_weights_averages_from_there(step, tmp_path):
    step()
    save_weights(step, tmp_path / "a.safetensors")
    other = TrainingStep(replace(RECIPE, seed=1), torch.device("cpu"))
    load_weights(other, tmp_path / "a.safetensors")
    pairs = zip(other.average.average, other.parameters, strict=True)
    assert all(torch.equal(average, parameter) for average, parameter in pairs)


def test_muon_takes_every_matrix_of_the_layers_and_nothing_else(step):
    assert {matrix.dim() for matrix in block_matrices(step.trainee.autoencoder)} == {2}
    assert len(block_matrices(step.trainee.autoencoder)) == 4 * (SHAPE.encoder_depth + SHAPE.decoder_depth)


def test_orthogonalised_matrices_have_singular_values_near_one():
    matrices = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3


def test_settings_reach_the_recipe_and_its_shape():
    recipe = recipe_with(Recipe(), ["lr=0.5", "latent_channels=8", "waveform=[2,1]"])
    assert (recipe.lr, recipe.shape.latent_channels, recipe.waveform) == (0.5, 8, (2, 1))


def test_the_rate_warms_up_and_ends_at_its_last_value():
    recipe = Recipe(warm_up_steps=10, last_rate=0.1)
    assert [round(recipe.rate_at(*at), 3) for at in ((0.0, 0), (0.3, 100), (1.0, 1000))] == [0.1, 1.0, 0.1]


def test_varied_sounds_are_finite_and_not_louder_than_two_of_them():
    audio = torch.cat([tone(), tone(hz=500), torch.zeros_like(tone())])
    made = varied(audio)
    assert made.isfinite().all() and float(made.abs().max()) <= 2 * float(audio.abs().max())


def test_sounds_as_recorded_are_finite_and_not_much_louder():
    audio = torch.cat([tone(), tone(hz=500), torch.zeros_like(tone())]).repeat(8, 1, 1)
    torch.manual_seed(0)
    made = as_recorded(audio)
    assert made.isfinite().all() and float(made.abs().max()) < 2 * float(audio.abs().max())
    assert (made[2::3].abs().amax(dim=(1, 2)) > 0).any()


def test_a_pool_of_sounds_as_recorded_gives_stereo_crops():
    pool = SoundPool(torch.device("cpu"), 1, num_sounds=2, num_parts=1, seconds=1.0, recorded=True)
    assert pool.crops(3, 8192).shape == (3, 2, 8192)


def test_figures_of_equal_audio_are_those_of_no_error():
    rows = figures(tone(), tone(), torch.tensor([0.1]), ["tone"])
    assert rows["tone"]["log_mel_db"] == rows["tone"]["log_stft_db"] == rows["tone"]["level_db"] == 0


def test_si_sdr_does_not_depend_on_the_level():
    noisy = tone() + 0.01 * torch.randn(1, 2, 8192, generator=torch.Generator().manual_seed(0))
    assert float(si_sdr(3 * noisy, tone())) == pytest.approx(float(si_sdr(noisy, tone())), abs=1e-3)


def test_the_carried_autoencoder_gives_a_tone_back():
    autoencoder = Autoencoder(model_config(Shape(latent_channels=128, chunk_frames=4)))
    autoencoder.load_state_dict({name: value.float() for name, value in load_file(CARRIED).items()})
    wanted = tone(8 * 4096)
    assert float(si_sdr(autoencoder.decode(autoencoder.encode(wanted)), wanted)) > 8
