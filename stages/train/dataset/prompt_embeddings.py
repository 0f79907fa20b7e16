"""The text side of a training: hidden states of every prompt, made once, kept on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.manifest import read_rows
from cache.shard_pool import ShardPool
from stages.contract import Artifact, Weights
from stages.models.load_weights import load_text_encoder
from stages.records import PromptRow

_PROMPTS_AT_ONCE = 16


@dataclass(frozen=True)
class PromptEmbeddings:
    """Hidden states of the valid tokens of each prompt, by key: (tokens, width) float32."""

    hidden: dict[str, Tensor]

    def lookup(self, keys: Sequence[str]) -> list[Tensor]:
        """Hidden states for the clips of a batch."""
        return [self.hidden[key] for key in keys]


def read_prompt_embeddings(artifact: Artifact, pool: ShardPool, device: torch.device) -> PromptEmbeddings:
    """As the encode stage left them."""
    rows = read_rows(artifact.directory / "prompts.parquet", PromptRow)
    return PromptEmbeddings(
        {row.prompt_key: torch.from_numpy(pool.read(row.location).copy()).to(device) for row in rows}
    )


def embed_prompts(texts: Iterable[str], weights: Weights, device: torch.device) -> PromptEmbeddings:
    """Each text once through the text encoder, which is let go afterwards; a prompt is its own key here."""
    encoder = load_text_encoder(weights, device)
    wanted = list(dict.fromkeys(texts))
    hidden: dict[str, Tensor] = {}
    for start in range(0, len(wanted), _PROMPTS_AT_ONCE):
        group = wanted[start : start + _PROMPTS_AT_ONCE]
        hidden.update(zip(group, encoder.hidden_states(group), strict=True))
    return PromptEmbeddings({text: states.detach().to(device, torch.float32) for text, states in hidden.items()})
