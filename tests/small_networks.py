"""Small networks with random weights, for tests that need no checkpoint."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from stages.models.nets.dit.conditioning import Conditioning

GOLDEN = Path(__file__).parent / "golden"
TINY = GOLDEN / "tiny-s"
N = TypeVar("N", bound=nn.Module)


def config(*, windowed: bool = False, differential: bool = False) -> dict[str, Any]:
    """The recorded small family's config; `windowed` gives its autoencoder a sliding window as the large model has."""
    read = copy.deepcopy(json.loads((TINY / "model_config.json").read_text("utf-8")))
    read["model"]["diffusion"]["config"]["attn_kwargs"]["differential"] = differential
    if windowed:
        for side in ("encoder", "decoder"):
            options = read["model"]["pretransform"]["config"][side]["config"]
            del options["chunk_size"], options["chunk_midpoint_shift"]
            options["sliding_window"] = [1, 1]
    return read


_SIZES = {"new_tokens": 0.05, "weight_g": 8.0, "q_norm.gamma": 3.0, "k_norm.gamma": 3.0, "bottleneck.bias": 0.1}
"""Scales that make latents depend on the audio rather than on the learned tokens."""


def randomised(network: N, seed: int = 0) -> N:
    """The network with all parameters redrawn, so that no zero branch hides a mistake. Frozen, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            size = next((size for ending, size in _SIZES.items() if name.endswith(ending)), None)
            if size is not None:
                parameter.copy_(size * (1 + 0.1 * values) if parameter.dim() < 3 else size * values)
            elif parameter.dim() > 1:
                parameter.copy_(values / max(parameter[0].numel(), 1) ** 0.5)
            else:
                parameter.copy_(0.2 * values if name.endswith(("bias", "beta")) else 1 + 0.2 * values)
    return network.eval().requires_grad_(False)


def denoiser_inputs(read: dict[str, Any], batch: int, num_frames: int, seed: int = 1) -> dict[str, Any]:
    """Random arguments of a denoiser of this config."""
    generator = torch.Generator().manual_seed(seed)
    model = read["model"]
    channels, width = model["io_channels"], model["conditioning"]["cond_dim"]
    normals = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731 - shorthand within this function
    mask = (torch.rand(batch, 1, num_frames, generator=generator) > 0.5).float()
    return {
        "noised_BCT": normals(batch, channels, num_frames),
        "timestep_B": torch.rand(batch, generator=generator),
        "conditioning": Conditioning(normals(batch, 7, width), normals(batch, width)),
        "inpaint_mask_B1T": mask,
        "masked_latents_BCT": mask * normals(batch, channels, num_frames),
    }
