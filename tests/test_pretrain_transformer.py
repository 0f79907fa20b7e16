"""Training of tiny-base's transformer and text encoder, in a few steps on the CPU."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from stages.models.load_weights import CONDITIONER, DENOISER, tensor_sources
from stages.models.nets.text_encoder import TextEncoder
from stages.pretrain.captions.tokenizer import train_tokenizer
from stages.pretrain.judge import Judge, load_judge, save_judge
from stages.pretrain.rate_schedule import recipe_with
from stages.pretrain.synthesis.facts import SoundFacts
from stages.pretrain.tempo import follows, tempos
from stages.pretrain.transformer.architecture import TransformerShape
from stages.pretrain.transformer.batch import BatchDraws, batch_losses
from stages.pretrain.transformer.checkpoint import load_weights, restore, save, save_weights, stored_tokenizer
from stages.pretrain.transformer.figures import names_note
from stages.pretrain.transformer.generator import padded_ids
from stages.pretrain.transformer.pool import TRAINED_TOKENS, Shelf
from stages.pretrain.transformer.prompts import prompt, token_rows
from stages.pretrain.transformer.recipe import Length, TransformerRecipe
from stages.pretrain.transformer.step import TransformerStep

CPU = torch.device("cpu")
SHAPE = TransformerShape(
    latent_channels=8, width=64, depth=1, text_width=32, text_depth=1, text_heads=2, vocabulary=400, max_tokens=48
)
LENGTH = Length(frames=16, content_frames=8, step_share=1.0)
RECIPE = TransformerRecipe(shape=SHAPE, lengths=(LENGTH,), frames_per_batch=128, warm_up_steps=1)
KICK = SoundFacts(family="kick", seconds=0.5, peak=0.5)
PLUCK = SoundFacts(family="pluck", seconds=0.7, peak=0.5, note=60)


@pytest.fixture(scope="module")
def tokenizer_json():
    return train_tokenizer(["a kick drum", "a plucked string, C4", "bright bell, 120 bpm"], 400)


@pytest.fixture
def shelf(tokenizer_json):
    made = Shelf(LENGTH, 4, SHAPE.latent_channels, CPU)
    latents_BCT = torch.randn(4, SHAPE.latent_channels, 16, generator=torch.Generator().manual_seed(0))
    made.put(latents_BCT, [0.5, 0.7] * 2, token_rows(tokenizer_json, [KICK, PLUCK] * 2, seed=0))
    return made


@pytest.fixture
def step(shelf):
    return TransformerStep(RECIPE, [shelf], CPU)


def test_the_loss_on_one_batch_falls(step):
    batch = step.draws.batch(step.shelves[0])
    step.draws.batch = lambda shelf: batch
    before = float(batch_losses(step.generator, batch).total(1.0).detach())
    for _ in range(15):
        step(0)
    assert float(batch_losses(step.generator, batch).total(1.0).detach()) < 0.8 * before


def test_every_weight_takes_part_in_a_step(step):
    step(0)
    assert [name for name, weight in step.generator.named_parameters() if weight.grad is None] == []


def test_a_checkpoint_goes_on_exactly(step, shelf, tmp_path):
    step(0)
    save(step, 1, tmp_path / "a.checkpoint")
    step(0)
    wanted = [parameter.clone() for parameter in step.parameters]
    other = TransformerStep(replace(RECIPE, seed=9), [shelf], CPU)
    other.draws = BatchDraws(RECIPE, CPU)  # its tables follow from the seed
    assert restore(other, tmp_path / "a.checkpoint") == 1
    other(0)
    assert all(torch.equal(one, two) for one, two in zip(wanted, other.parameters, strict=True))


def test_weights_have_the_names_and_shapes_of_the_published_file(step, tokenizer_json, tmp_path):
    save_weights(step, tokenizer_json, tmp_path / "a.safetensors")
    stored = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "a.safetensors").items()}
    networks = {DENOISER: step.generator.denoiser, CONDITIONER: step.generator.conditioner}
    found = [tensor_sources("a", network, stored, prefix) for prefix, network in networks.items()]
    assert sum(len(sources) for sources in found) == len(stored)


def test_prompts_are_tokenised_and_padded_as_the_product_does(step, tokenizer_json, tmp_path):
    save_weights(step, tokenizer_json, tmp_path / "a.safetensors")
    load_weights(step, tmp_path / "a.safetensors")  # rounded to float16, as stored
    texts = ["a plucked string, C4", "", "a kick drum"]
    product = TextEncoder(tmp_path / "text_encoder", SHAPE.max_tokens)
    hidden = [states.float() for states in product.hidden_states(texts)]
    wanted = step.generator.conditioner.padded_prompts(hidden)
    ids, mask = product.tokens(texts)
    rows = [row[valid].tolist() for row, valid in zip(ids, mask, strict=True)]
    found = step.generator.conditioning(padded_ids(rows, TRAINED_TOKENS), torch.ones(3)).context_BSE
    assert found[:, :-1].detach() == pytest.approx(wanted.detach(), abs=0.02)


def test_training_tokens_are_those_of_the_products_tokenizer(step, tokenizer_json, tmp_path):
    save_weights(step, tokenizer_json, tmp_path / "a.safetensors")
    product = TextEncoder(tmp_path / "text_encoder", SHAPE.max_tokens)
    random = Random(3)
    texts = [prompt(fact, random) for fact in (KICK, PLUCK) for _ in range(8)]
    rows = [row for variants in token_rows(tokenizer_json, [KICK, PLUCK], seed=3) for row in variants]
    assert [product.tokenizer(text)["input_ids"] for text in texts] == rows


def test_weights_start_a_run_with_the_tokenizer_beside_them(step, shelf, tokenizer_json, tmp_path):
    save_weights(step, tokenizer_json, tmp_path / "a.safetensors")
    other = TransformerStep(replace(RECIPE, seed=9), [shelf], CPU)
    load_weights(other, tmp_path / "a.safetensors")
    assert stored_tokenizer(tmp_path / "a.safetensors") == tokenizer_json
    assert all(torch.equal(a.half(), b.half()) for a, b in zip(step.parameters, other.parameters, strict=True))


def test_frames_that_are_not_real_are_never_given_and_do_not_count(step):
    batch = step.draws.batch(step.shelves[0])
    assert not (batch.given_BT & ~batch.real_BT).any()
    before = batch_losses(step.generator, batch).total(1.0)
    spoiled = torch.where(batch.real_BT[:, None], batch.latents_BCT, torch.full_like(batch.latents_BCT, 50.0))
    after = batch_losses(step.generator, replace(batch, latents_BCT=spoiled)).total(1.0)
    assert float(after.detach()) == pytest.approx(float(before.detach()), rel=1e-5)


def test_a_full_shelf_replaces_its_oldest_sounds(shelf, tokenizer_json):
    shelf.put(torch.full((1, 8, 16), 7.0), [0.3], token_rows(tokenizer_json, [KICK], seed=1))
    assert (shelf.held, float(shelf.count)) == (4, 4.0)
    assert shelf.seconds_N.tolist() == pytest.approx([0.3, 0.7, 0.5, 0.7])


def test_some_prompts_are_only_a_name_and_some_are_empty():
    random = Random(0)
    texts = [prompt(KICK, random) for _ in range(400)]
    assert "" in texts
    assert "kick" in texts


def test_settings_reach_the_recipe_and_the_shape():
    recipe = recipe_with(TransformerRecipe(), ["depth=7", "lr=0.002", "compiled=true"])
    assert (recipe.shape.depth, recipe.lr, recipe.compiled) == (7, 0.002, True)


def test_the_rate_falls_to_its_last_value():
    recipe = TransformerRecipe(first_rate=0.6, last_rate=0.0, decay_from=0.5)
    assert [recipe.rate_at(share, 10_000) for share in (0.0, 0.75, 1.0)] == pytest.approx([0.6, 0.3, 0.0])


def test_the_tempo_of_clicks_is_found():
    click = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 0, 2000)
    audio_BAX = torch.zeros(1, 2, 6 * 44_100)
    for beat in range(11):
        start = round(beat * 60 / 110 * 44_100)
        audio_BAX[..., start : start + 2000] += click
    assert follows(tempos(audio_BAX), torch.tensor([110]))[1] == 1.0


def test_a_caption_names_a_note_only_with_its_octave():
    assert names_note("a plucked harp, Db4", 61)
    assert not names_note("a plucked harp in C sharp", 61)


def test_a_judge_is_read_back(tmp_path):
    judge = Judge(width=8).half().float()
    save_judge(judge, tmp_path / "judge.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_judge(tmp_path / "judge.safetensors", CPU)
    whole = Judge().half().float()
    save_judge(whole, tmp_path / "judge.safetensors")
    read = load_judge(tmp_path / "judge.safetensors", CPU)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), read.parameters(), strict=True))
