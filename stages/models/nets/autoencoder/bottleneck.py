"""The autoencoder's bottleneck: a learned scale and bias, then division by one running standard deviation.

B batch, C latent channels, T latent frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.models.nets.autoencoder.noise import Noise, unit_normals
from stages.models.nets.config_checks import refuse_unknown, require

REGULARISING_NOISE = 1e-3
"""Of the normals added when decoding, in units of the running standard deviation."""


class SoftNormBottleneck(nn.Module):
    """z = (x * scaling_factor + bias) / running_std; decoding undoes the division alone."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        where, options = "bottleneck", config["config"]
        require(where, config, "type", ("softnorm",))
        require(where, options, "noise_augment_dim", (0,), 0)
        refuse_unknown(where, options, ("dim", "noise_augment_dim", "noise_regularize", "auto_scale"))
        num_channels = options["dim"]
        self.noise_regularize = bool(options.get("noise_regularize", False))
        self.scaling_factor = nn.Parameter(torch.ones(1, num_channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, num_channels, 1))
        # Empty, and part of every published file.
        self.noise_scaling_factor = nn.Parameter(torch.ones(1, 0, 1))
        self.running_std = nn.Parameter(torch.ones(1))

    def encode(self, feature_BCT: Tensor) -> Tensor:
        """Latents of roughly unit variance."""
        return (feature_BCT * self.scaling_factor + self.bias) / self.running_std

    def decode(self, latents_BCT: Tensor, noise: Noise) -> Tensor:
        """What the decoder is given; with `noise`, a thousandth of it as in the published configuration."""
        feature_BCT = latents_BCT * self.running_std
        normals = unit_normals(noise, tuple(latents_BCT.shape), latents_BCT) if self.noise_regularize else None
        return feature_BCT if normals is None else feature_BCT + REGULARISING_NOISE * self.running_std * normals
