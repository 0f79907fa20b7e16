"""Hidden states of every prompt, computed once and kept on the device."""

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

_PROMPTS_PER_BATCH = 16


@dataclass(frozen=True)
class PromptEmbeddings:
    """Hidden states of the valid tokens of each prompt, (tokens, width) float32."""

    hidden: dict[str, Tensor]
    """Hidden states by prompt key."""

    def lookup(self, keys: Sequence[str]) -> list[Tensor]:
        """Hidden states for the clips of a batch, by their prompt keys."""
        return [self.hidden[key] for key in keys]


def read_prompt_embeddings(artifact: Artifact, pool: ShardPool, device: torch.device) -> PromptEmbeddings:
    """Hidden states that the encode stage has stored."""
    rows = read_rows(artifact.directory / "prompts.parquet", PromptRow)
    return PromptEmbeddings(
        {row.prompt_key: torch.from_numpy(pool.read(row.location).copy()).to(device) for row in rows}
    )


def embed_prompts(texts: Iterable[str], weights: Weights, device: torch.device) -> PromptEmbeddings:
    """Encode each text once, and free the text encoder afterwards; a prompt is its own key here."""
    encoder = load_text_encoder(weights, device)
    wanted = list(dict.fromkeys(texts))
    hidden: dict[str, Tensor] = {}
    for start in range(0, len(wanted), _PROMPTS_PER_BATCH):
        group = wanted[start : start + _PROMPTS_PER_BATCH]
        hidden.update(zip(group, encoder.hidden_states(group), strict=True))
    return PromptEmbeddings({text: states.detach().to(device, torch.float32) for text, states in hidden.items()})
