"""The soft-norm bottleneck of the autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.models.nets.autoencoder.noise import Noise, unit_normals
from stages.models.nets.config_checks import refuse_unknown, require

REGULARISING_NOISE = 1e-3
"""Standard deviation of the noise added in decoding, in units of the running standard deviation."""


class SoftNormBottleneck(nn.Module):
    """z = (x * scale_c + bias_c) / running_std: learned per channel, normalised by one running scalar.

    Decoding undoes the division only.
    """

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
        # Has no elements, but is part of every published checkpoint.
        self.noise_scaling_factor = nn.Parameter(torch.ones(1, 0, 1))
        self.running_std = nn.Parameter(torch.ones(1))

    def encode(self, feature_BCT: Tensor) -> Tensor:
        """Latents of roughly unit variance."""
        return (feature_BCT * self.scaling_factor + self.bias) / self.running_std

    def decode(self, latents_BCT: Tensor, noise: Noise) -> Tensor:
        """Features for the decoder; `noise` is added, at a thousandth of their scale, if the config says so."""
        feature_BCT = latents_BCT * self.running_std
        normals = unit_normals(noise, tuple(latents_BCT.shape), latents_BCT) if self.noise_regularize else None
        return feature_BCT if normals is None else feature_BCT + REGULARISING_NOISE * self.running_std * normals
