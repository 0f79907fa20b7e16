"""Transformer, conditioner and text encoder as one network to train: latents' velocity from prompts' token ids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.nets.dit.conditioning import Conditioner, Conditioning
from stages.models.nets.dit.transformer import Denoiser
from stages.pretrain.transformer.architecture import TransformerShape, whole_config
from stages.pretrain.transformer.initialisation import block_matrices, initialise
from stages.pretrain.transformer.text_encoder import TrainedTextEncoder


class TrainedGenerator(nn.Module):
    """The three networks of a shape, started from a seed."""

    def __init__(self, shape: TransformerShape, seed: int) -> None:
        super().__init__()
        config = whole_config(shape)
        self.shape = shape
        self.denoiser, self.conditioner = Denoiser(config), Conditioner(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.text_encoder = TrainedTextEncoder(shape)
        initialise(self.denoiser, self.conditioner, seed)

    def conditioning(self, ids_BP: Tensor, seconds_B: Tensor) -> Conditioning:
        """Conditioning of prompts, padded as the product pads them, and of durations."""
        states_BPE, mask_BP = self.text_encoder(ids_BP)
        padding_E = self.conditioner.padding_vector
        prompts_BPE = torch.where(mask_BP[..., None], states_BPE.to(padding_E.dtype), padding_E)
        missing = self.shape.max_tokens - ids_BP.shape[1]
        behind_BPE = padding_E.expand(len(ids_BP), missing, -1)
        conditioning: Conditioning = self.conditioner(torch.cat([prompts_BPE, behind_BPE], dim=1), seconds_B)
        return conditioning

    def matrices(self) -> list[Tensor]:
        """Weight matrices of the layers of transformer and text encoder."""
        return [*block_matrices(self.denoiser), *self.text_encoder.matrices()]


def padded_ids(rows: list[list[int]], width: int) -> Tensor:
    """(B, width) int64 token ids, 0 behind each row; longer rows are cut, as the product's tokenizer cuts them."""
    cut = [torch.tensor(row[:width]) for row in rows]
    return torch.stack([F.pad(ids, (0, width - len(ids))) for ids in cut])


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 products on CUDA; off elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
