"""The conditioner: prompt hidden states and a duration to the inputs of the diffusion transformer.

P is the config's max_length; S = P + 1 context tokens.
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
"""Fourier features of the duration."""


class Conditioning(NamedTuple):
    """Conditioning inputs of a batch."""

    context_BSE: Tensor
    """Prompt tokens, then one token for the duration: keys and values of cross-attention."""
    global_BE: Tensor
    """The duration embedding: drives the adaLN modulation of every block."""


class LearnedPadding(nn.Module):
    """The learned embedding of padding positions of a prompt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.padding_embedding = nn.Parameter(torch.zeros(width))


class NumberEmbedding(nn.Module):
    """(B, E): Fourier features of a number in [0, 1], then a linear layer (position 1 of the published module list)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Sequential(FourierFeatures(DURATION_FEATURES), nn.Linear(DURATION_FEATURES, width))

    def forward(self, number_B: Tensor) -> Tensor:
        return self.embedding(number_B)


class NumberConditioner(nn.Module):
    """(B, E) embeddings of numbers, clamped to the config's range and scaled to [0, 1]."""

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
    """The trained parts of the conditioning: padding vector and duration embedding, without the text encoder."""

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
        """(E,), the learned embedding of padding positions."""
        prompt = self.conditioners["prompt"]
        assert isinstance(prompt, LearnedPadding)
        return prompt.padding_embedding

    def padded_prompts(self, hidden: Sequence[Tensor], *, learned_padding: bool = True) -> Tensor:
        """(B, P, E): the hidden states of each prompt's valid tokens, then the padding vector.

        Args:
            hidden: per prompt (n_i, E), n_i at most P.
            learned_padding: False pads with zeros instead, as for negative prompts.

        Raises:
            ValueError: hidden states of another width, or more than P tokens.
        """
        padding = self.padding_vector if learned_padding else torch.zeros_like(self.padding_vector)
        rows = [self._padded(states, padding) for states in hidden]
        return torch.stack(rows)

    def write_padded_prompts(self, prompts_BPE: Tensor, hidden: Sequence[Tensor]) -> None:
        """Writes `padded_prompts` of `hidden` into an existing tensor."""
        for row, states in zip(prompts_BPE, hidden, strict=True):
            row[: len(states)].copy_(states, non_blocking=True)
            row[len(states) :].copy_(self.padding_vector.expand(len(row) - len(states), -1))

    def _padded(self, states: Tensor, padding: Tensor) -> Tensor:
        num_tokens, width = states.shape
        if width != self.width or num_tokens > self.max_length:
            raise ValueError(
                f"hidden states must be (at most {self.max_length}, {self.width}); got {tuple(states.shape)}. "
                "The prompts were encoded by another text encoder: encode them again with this model."
            )
        rest = padding.expand(self.max_length - num_tokens, width)
        return torch.cat([states.to(padding.device), rest])

    def forward(self, prompts_BPE: Tensor, seconds_total_B: Tensor) -> Conditioning:
        """Context and global vector. `seconds_total_B`: seconds, int or float, clamped to the config's range."""
        dtype = self.padding_vector.dtype
        duration_BE = self.conditioners["seconds_total"](seconds_total_B.to(prompts_BPE.device), dtype)
        result_dtype = torch.promote_types(prompts_BPE.dtype, duration_BE.dtype)
        context_BSE = torch.cat([prompts_BPE.to(result_dtype), duration_BE[:, None].to(result_dtype)], dim=1)
        return Conditioning(context_BSE, duration_BE)


def prompt_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of the prompt conditioner: `max_length`, `subfolder`. Raises UnsupportedModelConfig."""
    return _conditioners(config["model"]["conditioning"], config["model"]["diffusion"])[0]


def _conditioners(
    conditioning: Mapping[str, Any], diffusion: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Options of the prompt and of the duration conditioner. Raises UnsupportedModelConfig for any others."""
    where = "conditioning"
    given = [(entry["id"], entry["type"]) for entry in conditioning["configs"]]
    if given != [("prompt", "t5gemma"), ("seconds_total", "number")]:
        raise UnsupportedModelConfig(
            where, f"conditioners {given}, only a t5gemma prompt and a number seconds_total are supported"
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
