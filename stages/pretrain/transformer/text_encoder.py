"""The text encoder with gradients, and its folder as the product loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.models.library_logging import quiet_torchao
from stages.pretrain.transformer.architecture import TOKENIZER_CONFIG, TransformerShape, text_encoder_config

_MASKED = -1e4
"""Added to the attention of padding tokens."""


class TrainedTextEncoder(nn.Module):
    """T5Gemma's encoder of a shape; eager attention, since only that applies the soft cap."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        quiet_torchao()
        from transformers import T5GemmaEncoderModel

        self.encoder = T5GemmaEncoderModel(_config(shape))
        self.encoder.set_attn_implementation("eager")

    def forward(self, ids_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, P, E) and the mask of tokens (B, P); id 0 is padding."""
        mask_BP = ids_BP != 0
        added = torch.zeros(ids_BP.shape, device=ids_BP.device).masked_fill(~mask_BP, _MASKED)
        added = added[:, None, None, :].expand(-1, 1, ids_BP.shape[1], -1)
        # Masks ready made: the library makes its own with a read from the device, which no CUDA graph allows.
        masks = {"full_attention": added, "sliding_attention": added}
        states = self.encoder(input_ids=ids_BP, attention_mask=masks).last_hidden_state
        return states, mask_BP

    def matrices(self) -> list[Tensor]:
        """Weight matrices of the layers."""
        layers = (module for name, module in self.encoder.named_modules() if ".layers." in name)
        return [module.weight for module in layers if isinstance(module, nn.Linear)]


def _config(shape: TransformerShape) -> Any:
    from transformers import T5GemmaConfig

    config = T5GemmaConfig(**text_encoder_config(shape))
    config.is_encoder_decoder = False
    config._attn_implementation = "eager"
    return config


def write_folder(encoder: TrainedTextEncoder, tokenizer_json: str, shape: TransformerShape, folder: Path) -> None:
    """Write config, weights in float16 and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(shape)
    config.architectures, config.dtype = ["T5GemmaEncoderModel"], torch.float16
    config.save_pretrained(folder)
    weights = {name: value.half().cpu().contiguous() for name, value in encoder.encoder.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=1), encoding="utf-8")


def read_weights(encoder: TrainedTextEncoder, folder: Path) -> None:
    """Take the weights of a folder."""
    stored = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    encoder.encoder.load_state_dict(stored)
