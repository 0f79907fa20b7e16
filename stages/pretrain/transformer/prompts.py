"""Prompts of sounds as token ids: captions, and now and then only a name or nothing. Light: tokenizers late."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from random import Random

from stages.pretrain.captions.caption import caption, name_of
from stages.pretrain.synthesis.facts import SoundFacts

EMPTY_SHARE, NAME_SHARE, LOWER_CASE_SHARE = 0.02, 0.06, 0.1
VARIANTS = 8
"""Prompts made for each sound, of which each step takes one."""

Rows = list[list[list[int]]]
"""Token ids of each variant of each sound."""


def prompt(facts: SoundFacts, random: Random) -> str:
    """What a user might type for a sound."""
    draw = random.random()
    if draw < EMPTY_SHARE:
        return ""
    if draw < EMPTY_SHARE + NAME_SHARE:
        return name_of(facts, random)
    text = caption(facts, random)
    return text.lower() if random.random() < LOWER_CASE_SHARE else text


def token_rows(tokenizer_json: str, facts: Sequence[SoundFacts], seed: int, variants: int = VARIANTS) -> Rows:
    """Token ids of some prompts for each sound, with <bos> and <eos>, not padded."""
    from tokenizers import Tokenizer

    random = Random(seed)
    tokenizer = Tokenizer.from_str(tokenizer_json)
    texts = [prompt(fact, random) for fact in facts for _ in range(variants)]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    return [ids[start : start + variants] for start in range(0, len(ids), variants)]


class PromptWriter:
    """Writes prompts in processes of their own, or at once with none."""

    def __init__(self, tokenizer_json: str, seed: int, processes: int = 0) -> None:
        self.tokenizer_json, self.seed = tokenizer_json, seed
        # Started afresh: a forked process would share the state of CUDA.
        self.processes = ProcessPoolExecutor(processes, mp_context=get_context("spawn")) if processes else None

    def rows(self, facts: Sequence[SoundFacts]) -> Future[Rows]:
        """Prompts of some sounds; each call draws others."""
        self.seed += 1
        if self.processes is not None:
            return self.processes.submit(token_rows, self.tokenizer_json, list(facts), self.seed)
        done: Future[Rows] = Future()
        done.set_result(token_rows(self.tokenizer_json, facts, self.seed))
        return done

    def close(self) -> None:
        """End the processes."""
        if self.processes is not None:
            self.processes.shutdown(wait=False, cancel_futures=True)
