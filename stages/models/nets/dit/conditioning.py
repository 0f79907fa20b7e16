"""From prompt hidden states and a duration to what the diffusion transformer is conditioned on.

B batch, L prompt tokens (the config's max_length), S = L + 1 context tokens, D conditioning width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stages.errors import UnsupportedModelConfig
from stages.models.nets.config_checks import refuse_unknown, require, section
from stages.models.nets.dit.fourier_features import FourierFeatures

DURATION_FEATURES = 256


class Conditioning(NamedTuple):
    """What one batch is conditioned on."""

    context_BSE: Tensor
    """Prompt tokens, then one token for the duration: for cross-attention."""
    global_BE: Tensor
    """The duration: for the modulation of every layer."""


class LearnedPadding(nn.Module):
    """The vector that stands where a prompt has no token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.padding_embedding = nn.Parameter(torch.zeros(width))


class NumberEmbedding(nn.Module):
    """Features of a number in [0, 1], then a linear layer (at position 1 of the published layout)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Sequential(FourierFeatures(DURATION_FEATURES), nn.Linear(DURATION_FEATURES, width))

    def forward(self, number_B: Tensor) -> Tensor:
        return self.embedding(number_B)


class NumberConditioner(nn.Module):
    """(B, D) from numbers, clamped to the config's range."""

    def __init__(self, width: int, options: Mapping[str, Any]) -> None:
        super().__init__()
        refuse_unknown("seconds_total conditioner", options, ("min_val", "max_val", "fourier_features_type"))
        require("seconds_total conditioner", options, "fourier_features_type", ("expo",))
        self.lowest, self.highest = float(options["min_val"]), float(options["max_val"])
        self.embedder = NumberEmbedding(width)

    def forward(self, number_B: Tensor, dtype: torch.dtype) -> Tensor:
        fraction_B = (number_B.float().clamp(self.lowest, self.highest) - self.lowest) / (self.highest - self.lowest)
        # Rounded before the features, as the published models were trained: the features reach 10000 cycles per unit.
        return self.embedder(fraction_B.to(dtype))


class Conditioner(nn.Module):
    """The trained parts of the conditioning: padding vector and duration embedding. The text encoder is not in it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        conditioning = section("model", config["model"], "conditioning")
        prompt, seconds = _conditioners(conditioning, config["model"]["diffusion"])
        self.width: int = conditioning["cond_dim"]
        self.max_length: int = prompt["max_length"]
        self.conditioners = nn.ModuleDict(
            {"prompt": LearnedPadding(self.width), "seconds_total": NumberConditioner(self.width, seconds)}
        )

    @property
    def padding_vector(self) -> Tensor:
        """(D,), what the checkpoint learned for positions without a token."""
        prompt = self.conditioners["prompt"]
        assert isinstance(prompt, LearnedPadding)
        return prompt.padding_embedding

    def padded_prompts(self, hidden: Sequence[Tensor], *, learned_padding: bool = True) -> Tensor:
        """(B, L, D): each prompt's hidden states of its valid tokens (n_i, D), then the padding vector.

        Args:
            learned_padding: False puts zeros there instead, as negative prompts have it.

        Raises:
            ValueError: hidden states of another width, or more than L tokens.
        """
        filling = self.padding_vector if learned_padding else torch.zeros_like(self.padding_vector)
        rows = [self._padded(states, filling) for states in hidden]
        return torch.stack(rows)

    def write_padded_prompts(self, prompts_BPE: Tensor, hidden: Sequence[Tensor]) -> None:
        """`padded_prompts` into memory that is there already."""
        for row, states in zip(prompts_BPE, hidden, strict=True):
            row[: len(states)].copy_(states, non_blocking=True)
            row[len(states) :].copy_(self.padding_vector.expand(len(row) - len(states), -1))

    def _padded(self, states: Tensor, filling: Tensor) -> Tensor:
        num_tokens, width = states.shape
        if width != self.width or num_tokens > self.max_length:
            raise ValueError(
                f"hidden states must be (at most {self.max_length}, {self.width}); got {tuple(states.shape)}. "
                "The prompts were encoded by another text encoder: encode them again with this model."
            )
        rest = filling.expand(self.max_length - num_tokens, width)
        return torch.cat([states.to(filling.device), rest])

    def forward(self, prompts_BPE: Tensor, seconds_total_B: Tensor) -> Conditioning:
        """Context and global vector; `seconds_total_B` in seconds, int or float, clamped to the config's range."""
        dtype = self.padding_vector.dtype
        duration_BD = self.conditioners["seconds_total"](seconds_total_B.to(prompts_BPE.device), dtype)
        common = torch.promote_types(prompts_BPE.dtype, duration_BD.dtype)
        context_BSE = torch.cat([prompts_BPE.to(common), duration_BD[:, None].to(common)], dim=1)
        return Conditioning(context_BSE, duration_BD)


def prompt_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The prompt conditioner's options: `max_length`, `subfolder` of the text encoder."""
    return _conditioners(config["model"]["conditioning"], config["model"]["diffusion"])[0]


def _conditioners(
    conditioning: Mapping[str, Any], diffusion: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Options of the prompt and of the duration conditioner; refuses any other set or routing."""
    where = "conditioning"
    kinds = [(entry["id"], entry["type"]) for entry in conditioning["configs"]]
    if kinds != [("prompt", "t5gemma"), ("seconds_total", "number")]:
        raise UnsupportedModelConfig(
            where, f"conditioners {kinds}, only a t5gemma prompt and a number seconds_total are built"
        )
    routes = (
        ("cross_attention_cond_ids", ["prompt", "seconds_total"]),
        ("global_cond_ids", ["seconds_total"]),
        ("local_add_cond_ids", ["inpaint_mask", "inpaint_masked_input"]),
    )
    for key, ids in routes:
        require("diffusion", diffusion, key, (ids,))
    prompt, seconds = (entry["config"] for entry in conditioning["configs"])
    refuse_unknown(where, prompt, ("repo_id", "subfolder", "max_length", "padding_mode", "model_name", "project_out"))
    require(where, prompt, "padding_mode", ("learned",))
    require(where, prompt, "project_out", (False,), False)
    return prompt, seconds
