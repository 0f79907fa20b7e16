"""The frozen text encoder: tokenizer and encoder of T5Gemma, through the transformers library.

P is the max_length of the prompt conditioner.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.errors import StageError, WeightsMismatch, WeightsNotFound
from stages.models.library_logging import quiet_torchao

_DECODER_PREFIXES = ("decoder.", "model.decoder.", "lm_head.")
"""Prefixes of tensors to ignore: a file may hold the whole encoder-decoder."""


class TextEncoder:
    """Tokenizer and encoder of a T5Gemma folder, in the dtype they are stored in.

    Not an nn.Module, so that nothing casts it, saves it or attaches an adapter to it.
    """

    def __init__(self, folder: Path, max_length: int, device: str | torch.device = "cpu") -> None:
        """Load the folder; needs no network access.

        Raises:
            WeightsNotFound: the folder or its config.json is missing, or a file of it is damaged.
            WeightsMismatch: the tensors of the file are not those of the encoder.
        """
        if not (folder / "config.json").is_file():
            remedy = "Download the whole model folder again; the text encoder is a sub-folder of it."
            raise WeightsNotFound(str(folder), "the text encoder's config.json is missing", remedy)
        quiet_torchao()
        from transformers import AutoTokenizer

        self.max_length = max_length
        self.device = torch.device(device)
        with _damage_in_words(folder):
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            encoder = _encoder(folder)
        self.encoder = encoder.to(self.device)
        self.width: int = self.encoder.config.encoder.hidden_size

    def hidden_states(self, prompts: Sequence[str]) -> list[Tensor]:
        """Last hidden states of the valid tokens of each prompt, (n_i, E), in the encoder's dtype.

        Tokens beyond `max_length` are cut off (see `num_tokens`); an empty prompt may have no token at all.
        """
        input_ids_BP, mask_BP = self.tokens(prompts)
        filled = [row for row, mask_P in enumerate(mask_BP.tolist()) if any(mask_P)]
        states = {}
        if filled:
            # A prompt without tokens is left out: attention over an empty set is undefined.
            states_BPE = self.encoded(input_ids_BP[filled], mask_BP[filled])
            states = {row: states_PE[mask_BP[row]] for row, states_PE in zip(filled, states_BPE, strict=True)}
        empty = torch.empty(0, self.width, dtype=self.encoder.dtype, device=self.device)
        return [states.get(row, empty) for row in range(len(prompts))]

    def tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, P) and attention mask (bool, True on tokens), padded on the side that the tokenizer pads."""
        batch = self.tokenizer(
            list(prompts), truncation=True, max_length=self.max_length, padding="max_length", return_tensors="pt"
        )
        return batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device, torch.bool)

    def num_tokens(self, prompt: str) -> int:
        """Number of tokens of a prompt before truncation; above `max_length` its end is ignored."""
        return len(self.tokenizer(prompt)["input_ids"])

    @torch.no_grad()
    def encoded(self, input_ids_BP: Tensor, mask_BP: Tensor) -> Tensor:
        """Last hidden states (B, P, E); those at padding positions are meaningless."""
        return self.encoder(input_ids=input_ids_BP, attention_mask=mask_BP).last_hidden_state


def _encoder(folder: Path) -> Any:
    """The frozen encoder from either file layout (alone, or in an encoder-decoder); strict."""
    from transformers import AutoConfig, T5GemmaEncoderModel

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    config.is_encoder_decoder = False
    with _quiet_transformers():
        encoder, report = T5GemmaEncoderModel.from_pretrained(
            folder,
            config=config,
            # Only the eager implementation applies the soft cap on attention logits; other kernels drop it.
            attn_implementation="eager",
            dtype="auto",
            local_files_only=True,
            # Reported like missing and extra tensors instead of raised.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    extra = [name for name in report["unexpected_keys"] if not name.startswith(_DECODER_PREFIXES)]
    misshapen = [str(name) for name in report["mismatched_keys"]]
    if report["missing_keys"] or extra or misshapen:
        missing = sorted(report["missing_keys"])
        raise WeightsMismatch(str(folder), missing=missing, extra=sorted(extra), misshapen=sorted(misshapen))
    return encoder.eval().requires_grad_(False)


@contextmanager
def _damage_in_words(folder: Path) -> Iterator[None]:
    """Turns what the library raises about a damaged file, which may be anything, into WeightsNotFound."""
    try:
        yield
    except (StageError, ImportError, MemoryError, RuntimeError):
        raise  # said in words of their own elsewhere
    except Exception as error:
        why = f"the text encoder cannot be loaded ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        remedy = "A file of it is damaged: download its folder, a sub-folder of the model's, again."
        raise WeightsNotFound(str(folder), why, remedy) from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hides the library's report about the unused decoder; the loading report is checked here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
