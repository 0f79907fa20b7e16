"""How transformer and text encoder start, from a seed, and which of their weights are matrices of layers."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from stages.models.nets.dit.conditioning import Conditioner
from stages.models.nets.dit.transformer import Denoiser, TransformerBlock

BRANCH_GAIN = 0.3
"""Of the last matrix of every residual branch: the start is near the identity."""
TOKEN_STD = 0.5
MODULATION_GAIN = 0.1


@torch.no_grad()
def initialise(denoiser: Denoiser, conditioner: Conditioner, seed: int) -> None:
    """Matrices by fan-in, biases and the output 0, gains 1."""
    generator = torch.Generator().manual_seed(seed)
    for network in (denoiser, conditioner):
        for name, parameter in network.named_parameters():
            if parameter.dim() == 2:
                _normal(parameter, parameter.shape[1] ** -0.5, generator)
            elif name.endswith("bias"):
                parameter.zero_()
    model, tower = denoiser.model, denoiser.model.transformer
    _normal(tower.memory_tokens, TOKEN_STD, generator)
    _normal(conditioner.padding_vector, TOKEN_STD, generator)
    cast(nn.Linear, tower.global_cond_embedder[2]).weight.mul_(MODULATION_GAIN)
    for weight in (tower.project_out.weight, model.preprocess_conv.weight, model.postprocess_conv.weight):
        weight.zero_()
    for block in blocks(denoiser):
        for linear in (block.self_attn.to_out, block.cross_attn.to_out, block.ff.ff[2], block.to_local_embed[2]):
            cast(nn.Linear, linear).weight.mul_(BRANCH_GAIN)


def _normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    parameter.copy_(std * torch.randn(parameter.shape, generator=generator))


def blocks(denoiser: Denoiser) -> list[TransformerBlock]:
    """Its layers."""
    return [cast(TransformerBlock, block) for block in denoiser.model.transformer.layers]


def block_matrices(denoiser: Denoiser) -> list[Tensor]:
    """The weight matrices inside the layers, but for the one that reads the inpainting mask and the given latents."""
    return [
        linear.weight
        for block in blocks(denoiser)
        for name, linear in block.named_modules()
        if isinstance(linear, nn.Linear) and name != "to_local_embed.0"
    ]
