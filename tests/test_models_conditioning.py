"""Conditioning and the text encoder, on the small recorded checkpoint."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.contract import Weights
from stages.errors import UnsupportedModelConfig, WeightsMismatch, WeightsNotFound
from stages.models.load_weights import load_conditioner, load_text_encoder
from stages.models.nets.dit.conditioning import Conditioner
from stages.models.nets.text_encoder import TextEncoder
from tests.small_networks import TINY, config

FOLDER = TINY / "t5gemma-b-b-ul2"
WEIGHTS = Weights(model="tiny", folder=TINY, config=config(), digests={})
PROMPTS = ["warm analog pad", "", "rain"]


@pytest.fixture(scope="module")
def encoder():
    return load_text_encoder(WEIGHTS)


@pytest.fixture(scope="module")
def conditioner():
    return load_conditioner(WEIGHTS)


def test_hidden_states_are_those_of_the_valid_tokens(encoder):
    states = encoder.hidden_states(PROMPTS)
    assert [len(one) for one in states] == [encoder.num_tokens(prompt) for prompt in PROMPTS]
    assert states[1].shape == (0, encoder.width)


def test_hidden_states_of_a_prompt_do_not_depend_on_other_prompts_of_the_batch(encoder):
    together, alone = encoder.hidden_states(PROMPTS)[2], encoder.hidden_states([PROMPTS[2]])[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_batch_of_empty_prompts_has_no_states(encoder):
    assert [tuple(one.shape) for one in encoder.hidden_states(["", ""])] == [(0, encoder.width)] * 2


def test_a_long_prompt_is_cut_at_the_configs_length(encoder):
    long = "a long walk in the rain " * 20
    assert encoder.num_tokens(long) > encoder.max_length
    assert len(encoder.hidden_states([long])[0]) == encoder.max_length


def test_attention_logits_are_capped(encoder):
    assert encoder.encoder.config._attn_implementation == "eager"


def test_the_text_encoder_keeps_the_dtype_it_is_stored_in(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "half")
    stored = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(FOLDER / "model.safetensors").items()}
    save_file(stored, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((FOLDER / "config.json").read_text())
    (tmp_path / "half" / "config.json").write_text(json.dumps(settings | {"dtype": "bfloat16"}))
    assert TextEncoder(tmp_path / "half", 24).hidden_states(["rain"])[0].dtype == torch.bfloat16


def test_an_encoder_decoder_file_gives_the_same_encoder(tmp_path, encoder):
    shutil.copytree(FOLDER, tmp_path / "both")
    stored = load_file(FOLDER / "model.safetensors")
    whole = {f"model.{name}": tensor for name, tensor in stored.items()}
    whole["model.decoder.embed_tokens.weight"] = torch.zeros(420, 32)
    save_file(whole, tmp_path / "both" / "model.safetensors", metadata={"format": "pt"})
    both = TextEncoder(tmp_path / "both", encoder.max_length)
    assert torch.equal(both.hidden_states(["rain"])[0], encoder.hidden_states(["rain"])[0])


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen"])
def test_a_text_encoder_file_with_other_tensors_than_its_network_is_refused(tmp_path, change):
    shutil.copytree(FOLDER, tmp_path / "bad")
    stored = load_file(FOLDER / "model.safetensors")
    if change == "missing":
        del stored["encoder.norm.weight"]
    elif change == "extra":
        stored["encoder.layers.7.norm.weight"] = torch.zeros(3)
    else:
        stored["encoder.norm.weight"] = torch.zeros(7)
    save_file(stored, tmp_path / "bad" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsMismatch, match=rf"1 {change}:\n.*(norm\.weight|layers\.7)"):
        TextEncoder(tmp_path / "bad", 24)


def test_a_folder_without_a_text_encoder_is_named(tmp_path):
    with pytest.raises(WeightsNotFound, match="nowhere"):
        TextEncoder(tmp_path / "nowhere", 24)


def test_prompts_are_padded_with_the_learned_vector(conditioner):
    states = torch.randn(5, conditioner.width)
    padded = conditioner.padded_prompts([states, torch.empty(0, conditioner.width)])
    assert padded.shape == (2, conditioner.max_length, conditioner.width)
    assert torch.equal(padded[0, :5], states)
    assert torch.equal(padded[0, 5], conditioner.padding_vector)
    assert torch.equal(padded[1], conditioner.padding_vector.expand(conditioner.max_length, -1))


def test_a_negative_prompt_is_padded_with_zeros(conditioner):
    padded = conditioner.padded_prompts([torch.ones(2, conditioner.width)], learned_padding=False)
    assert padded[0, 2:].abs().max() == 0


@pytest.mark.parametrize("shape", [(3, 31), (25, 32)])
def test_states_of_another_text_encoder_are_refused(conditioner, shape):
    with pytest.raises(ValueError, match="another text encoder"):
        conditioner.padded_prompts([torch.zeros(shape)])


def test_the_duration_is_the_last_context_token_and_the_global_vector(conditioner):
    made = conditioner(conditioner.padded_prompts([torch.ones(2, 32)] * 2), torch.tensor([7, 120]))
    assert made.context_BSE.shape == (2, conditioner.max_length + 1, 32)
    assert torch.equal(made.context_BSE[:, -1], made.global_BE)


def test_durations_are_clamped_to_the_configs_range(conditioner):
    prompts = conditioner.padded_prompts([torch.ones(2, 32)] * 4)
    made = conditioner(prompts, torch.tensor([-3.0, 0.0, 384.0, 500.0])).global_BE
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[2], made[3])


def test_the_duration_is_rounded_to_the_networks_dtype_before_its_features():
    network = load_conditioner(WEIGHTS, dtype=torch.bfloat16)
    prompts = network.padded_prompts([torch.ones(2, 32)] * 2)
    rounded = torch.tensor(380 / 384).to(torch.bfloat16).double() * 384
    made = network(prompts, torch.tensor([380.0, rounded]))
    assert torch.equal(made.global_BE[0], made.global_BE[1])
    assert made.global_BE.dtype == torch.bfloat16
    assert made.context_BSE.dtype == torch.float32


def test_other_conditioners_than_prompt_and_duration_are_refused():
    read = config()
    read["model"]["conditioning"]["configs"].append({"id": "seconds_start", "type": "number", "config": {}})
    with pytest.raises(UnsupportedModelConfig, match="seconds_start"):
        Conditioner(read)
