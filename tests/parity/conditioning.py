"""Cases `conditioning` and `timestep_features`; conditioning inputs for other checkers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from stages.models.load_weights import load_conditioner, load_denoiser, load_text_encoder
from stages.models.nets.dit.conditioning import Conditioner, Conditioning
from stages.models.nets.dit.fourier_features import fourier_features
from stages.models.nets.text_encoder import TextEncoder
from tests.parity.frame import Case, Comparison, Family, checks, compare, exact


def text_encoder(family: Family) -> TextEncoder:
    """The family's text encoder, loaded once."""
    return family.once("text_encoder", lambda: load_text_encoder(family.weights))


def conditioner(family: Family) -> Conditioner:
    """The family's conditioner, loaded once and shared: an attached adapter must be detached again."""
    return family.once("conditioner", lambda: load_conditioner(family.weights))


def conditioning(family: Family, prompts: Sequence[str], seconds: Sequence[float]) -> Conditioning:
    """Conditioning inputs of these prompts and durations."""
    network = conditioner(family)
    hidden = text_encoder(family).hidden_states(prompts)
    return network(network.padded_prompts(hidden), torch.tensor(seconds))


@checks(r"conditioning")
def conditioned(family: Family, case: Case) -> Iterator[Comparison]:
    prompts, seconds = case.params["prompts"], case.params["seconds_total"]
    network, encoder = conditioner(family), text_encoder(family)
    input_ids, mask = encoder.tokens(prompts)
    yield exact("input_ids", input_ids, case.tensors["input_ids"])
    yield exact("attention_mask", mask.long(), case.tensors["attention_mask"])
    # A row without any token has no defined result.
    defined = mask.any(dim=1)[:, None, None]
    yield compare(case, "t5_last_hidden_state", encoder.encoded(input_ids, mask), where=defined)
    hidden = encoder.hidden_states(prompts)
    prompt_embeds = network.padded_prompts(hidden)
    yield compare(case, "prompt_embeds", prompt_embeds)
    made = network(prompt_embeds, torch.tensor(seconds))
    num_tokens = torch.tensor([len(states) for states in hidden])
    prompt_mask = (torch.arange(network.max_length) < num_tokens[:, None]).float()
    duration_mask = torch.ones(len(prompts), 1)
    yield compare(case, "prompt_mask", prompt_mask)
    yield compare(case, "seconds_embeds", made.global_BE[:, None])
    yield compare(case, "seconds_mask", duration_mask)
    yield compare(case, "cross_attn_cond", made.context_BSE)
    yield compare(case, "cross_attn_mask", torch.cat([prompt_mask, duration_mask], dim=1))
    yield compare(case, "global_cond", made.global_BE)


@checks(r"timestep_features")
def timestep_features(family: Family, case: Case) -> Iterator[Comparison]:
    network = family.once("denoiser", lambda: load_denoiser(family.weights)).model
    timestep = case.tensors["t"]
    features = fourier_features(timestep, network.num_timestep_features)
    yield compare(case, "features", features)
    yield compare(case, "embed", network.timestep_embedding(timestep))
    if case.has("features_float64"):
        yield compare(case, "features_float64", features)
