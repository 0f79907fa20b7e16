"""The frozen text encoder (T5Gemma), through the transformers library.

B prompts, L token positions (the prompt conditioner's max_length), D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.errors import WeightsMismatch, WeightsNotFound
from stages.models.library_logging import quiet_torchao

_OTHER_HALF = ("decoder.", "model.decoder.", "lm_head.")
"""A file may hold the whole encoder-decoder; only the encoder is wanted."""


class TextEncoder:
    """Tokenizer and encoder half of a T5Gemma folder, in the dtype it is stored in.

    Not an nn.Module of ours, so that nothing casts it, saves it or puts an adapter on it.
    """

    def __init__(self, folder: Path, max_length: int, device: str | torch.device = "cpu") -> None:
        """Read the folder; needs no network.

        Raises:
            WeightsNotFound: there is no such folder.
            WeightsMismatch: the file does not cover the encoder.
        """
        if not (folder / "config.json").is_file():
            remedy = "Download the whole model folder again; the text encoder is a sub-folder of it."
            raise WeightsNotFound(str(folder), "the text encoder's config.json is missing", remedy)
        quiet_torchao()
        from transformers import AutoTokenizer

        self.max_length = max_length
        self.device = torch.device(device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.encoder = _encoder(folder).to(self.device)
        self.width: int = self.encoder.config.encoder.hidden_size

    def hidden_states(self, prompts: Sequence[str]) -> list[Tensor]:
        """Per prompt the last hidden states of its valid tokens, (number of tokens, D), in the encoder's dtype.

        Tokens beyond `max_length` are cut off (`num_tokens` tells); an empty prompt may have no token at all.
        """
        input_ids_BL, mask_BL = self.tokens(prompts)
        filled = [row for row, mask_L in enumerate(mask_BL.tolist()) if any(mask_L)]
        states = {}
        if filled:
            # A prompt without tokens is left out: attention over nothing has no defined result.
            states_BLD = self.encoded(input_ids_BL[filled], mask_BL[filled])
            states = {row: states_LD[mask_BL[row]] for row, states_LD in zip(filled, states_BLD, strict=True)}
        empty = torch.empty(0, self.width, dtype=self.encoder.dtype, device=self.device)
        return [states.get(row, empty) for row in range(len(prompts))]

    def tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) and their mask, bool, True on tokens; padded on the tokenizer's own side."""
        batch = self.tokenizer(
            list(prompts), truncation=True, max_length=self.max_length, padding="max_length", return_tensors="pt"
        )
        return batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device, torch.bool)

    def num_tokens(self, prompt: str) -> int:
        """Tokens of a prompt before any cut; above `max_length` its end is not heard."""
        return len(self.tokenizer(prompt)["input_ids"])

    @torch.no_grad()
    def encoded(self, input_ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Last hidden states (B, L, D); what stands at padding positions has no meaning."""
        return self.encoder(input_ids=input_ids_BL, attention_mask=mask_BL).last_hidden_state


def _encoder(folder: Path) -> Any:
    """The encoder of either file layout (alone, or in an encoder-decoder), frozen; every tensor of it from the file."""
    from transformers import AutoConfig, T5GemmaEncoderModel

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    config.is_encoder_decoder = False
    with _quiet_transformers():
        encoder, report = T5GemmaEncoderModel.from_pretrained(
            folder,
            config=config,
            # The soft cap on attention logits exists in the eager path alone; other kernels drop it.
            attn_implementation="eager",
            dtype="auto",
            local_files_only=True,
            # Reported to us instead of raised, as missing and extra tensors are.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    extra = [name for name in report["unexpected_keys"] if not name.startswith(_OTHER_HALF)]
    misshapen = [str(name) for name in report["mismatched_keys"]]
    if report["missing_keys"] or extra or misshapen:
        missing = sorted(report["missing_keys"])
        raise WeightsMismatch(str(folder), missing=missing, extra=sorted(extra), misshapen=sorted(misshapen))
    return encoder.eval().requires_grad_(False)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """The library reports the unused decoder at length; we judge its report ourselves."""
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
