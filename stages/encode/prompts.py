"""Prompt embeddings: hidden states of the text encoder, for the prompts that the store does not hold yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from cache.location import Location
from cache.shard_pool import ShardPool, shard_ranges
from stages.contract import Weights, Workspace
from stages.encode.stage import prompt_key
from stages.errors import Stopped
from stages.models.device import pick_device
from stages.models.load_weights import load_text_encoder
from stages.models.nets.text_encoder import TextEncoder
from stages.plural import pluralized
from stages.records import PromptRow


@dataclass(frozen=True, kw_only=True)
class EmbeddedPrompts:
    """The location of every prompt's hidden states, and how many were embedded now."""

    rows: list[PromptRow]
    num_encoded: int


def embed_prompts(pool: ShardPool, texts: Iterable[str], weights: Weights, work: Workspace) -> EmbeddedPrompts:
    """Embed each prompt that the store does not hold yet; the text encoder is loaded only if there is one."""
    key_of = prompt_keys(weights)
    prompts = {key_of(prompt): prompt for prompt in dict.fromkeys(texts)}
    located = pool.locate(prompts)
    pending = [key for key in prompts if key not in located]
    if pending:
        work.phase(f"embedding {pluralized(len(pending), 'prompt')}")
        encoder = load_text_encoder(weights, pick_device(work.resources.device))
        for group in shard_ranges([encoder.max_length * 4096] * len(pending)):
            if work.should_stop():
                raise Stopped("while embedding prompts")
            now = pending[group.start : group.stop]
            report_truncated_prompts(encoder, [prompts[key] for key in now], work)
            hidden = encoder.hidden_states([prompts[key] for key in now])
            items = [(key, states.to("cpu", torch.float32).numpy()) for key, states in zip(now, hidden, strict=True)]
            metadata = {"layout": "tokens, width", "text_encoder": weights.digests["text_encoder"]}
            located.update({location.item_key: location for location in pool.write(items, metadata)})
    rows = [prompt_row(located[key], prompt) for key, prompt in prompts.items()]
    return EmbeddedPrompts(rows=rows, num_encoded=len(pending))


def report_truncated_prompts(encoder: TextEncoder, prompts: Iterable[str], work: Workspace) -> None:
    """Report every prompt that is longer than the text encoder's input."""
    for prompt in prompts:
        if (num_tokens := encoder.num_tokens(prompt)) > encoder.max_length:
            work.say(
                f"a prompt is too long: only the first {encoder.max_length} of {num_tokens} tokens are used: {prompt!r}"
            )


def prompt_row(location: Location, prompt: str) -> PromptRow:
    """A prompt's row of prompts.parquet."""
    return PromptRow(
        prompt_key=location.item_key,
        prompt=prompt,
        shard=location.shard,
        row=location.row,
        num_tokens=location.num_frames,
        checksum=location.checksum,
    )


def prompt_keys(weights: Weights) -> Callable[[str], str]:
    """The function from a prompt to its key, for this checkpoint's text encoder and tokenizer settings."""
    max_length = weights.sizes.max_prompt_tokens
    return lambda prompt: prompt_key(prompt, weights.digests["text_encoder"], max_length)
