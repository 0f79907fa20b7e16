"""A tokenizer made from captions: byte pairs merged by how often they occur, any other text spelled in bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")
"""Ids 0 to 3, as the published text encoder numbers them."""


def train_tokenizer(captions: Iterable[str], vocabulary_size: int = 1000) -> str:
    """The text of a tokenizer.json, the same for the same captions.

    Every text can be tokenised and is restored exactly: the 256 bytes are in the vocabulary. A <bos> stands in front
    and an <eos> behind, as with the published tokenizer.

    Args:
        vocabulary_size: number of tokens at most, special tokens and bytes included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if vocabulary_size < len(SPECIAL_TOKENS) + 256:
        raise ValueError(f"vocabulary_size must be at least {len(SPECIAL_TOKENS) + 256}, to hold every byte")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    # Digits apart, so that a tempo is read by its digits and not by whether it occurred.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[(name, SPECIAL_TOKENS.index(name)) for name in ("<bos>", "<eos>")]
    )
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=1)
