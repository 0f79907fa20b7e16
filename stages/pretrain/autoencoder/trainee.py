"""The autoencoder with gradients: what `Autoencoder` does frozen, with the noise and statistics of training."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.pretrain.autoencoder.architecture import Shape, model_config
from stages.pretrain.autoencoder.initialisation import decoder_side, initialise

STATISTICS_RATE = 0.01
"""Share of a new batch in the running standard deviation."""


class Draws(NamedTuple):
    """Standard normal noise of one training step, fixed in shape so that a CUDA graph can be captured."""

    latents_BCT: Tensor
    tokens: Tensor


class Trainee(nn.Module):
    """An autoencoder of a shape, started from a seed."""

    def __init__(self, shape: Shape, seed: int) -> None:
        super().__init__()
        self.shape = shape
        self.autoencoder = Autoencoder(model_config(shape))
        initialise(self.autoencoder, seed)
        # Neither is learned: one is a statistic, the other has no elements.
        for fixed in (self.autoencoder.bottleneck.running_std, self.autoencoder.bottleneck.noise_scaling_factor):
            fixed.requires_grad_(False)

    def draws(self, audio_BAX: Tensor) -> Draws:
        """Fresh noise for a batch of this size."""
        config = decoder_side(self.autoencoder).config
        batch, num_frames = audio_BAX.shape[0], audio_BAX.shape[-1] // self.autoencoder.downsampling_ratio
        device = audio_BAX.device
        latents_BCT = torch.randn(batch, self.shape.latent_channels, num_frames, device=device)
        return Draws(latents_BCT, torch.randn(batch * num_frames, config.stride, config.width, device=device))

    def features(self, audio_BAX: Tensor) -> Tensor:
        """Features (B, C, T) after the bottleneck's scale and bias, before the division by its running deviation."""
        autoencoder = self.autoencoder
        with _autocast(audio_BAX):
            feature_BCT = autoencoder.encoder(autoencoder.patched(audio_BAX), None)
        bottleneck = autoencoder.bottleneck
        return feature_BCT.float() * bottleneck.scaling_factor + bottleneck.bias

    def audio(self, feature_BCT: Tensor, token_noise: Tensor | None) -> Tensor:
        """Audio (B, A, X) of features."""
        with _autocast(feature_BCT):
            patches = self.autoencoder.decoder(feature_BCT, token_noise)
        return self.autoencoder.unpatched(patches.float())

    @torch.no_grad()
    def follow_deviation(self, feature_BCT: Tensor) -> None:
        """Move the running standard deviation towards that of a batch."""
        running_std = self.autoencoder.bottleneck.running_std
        running_std.lerp_(feature_BCT.std().reshape(1), STATISTICS_RATE)

    def latents(self, feature_BCT: Tensor) -> Tensor:
        """Latents of unit scale."""
        return feature_BCT / self.autoencoder.bottleneck.running_std

    def with_noise(self, feature_BCT: Tensor, amount: float, draws: Draws) -> Tensor:
        """Features plus noise, `amount` in units of the latents."""
        return feature_BCT + amount * self.autoencoder.bottleneck.running_std * draws.latents_BCT

    @torch.no_grad()
    def round_trip(self, audio_BAX: Tensor) -> Tensor:
        """Audio encoded and decoded again, without noise."""
        return self.audio(self.features(audio_BAX), None)


def _autocast(like: Tensor) -> torch.autocast:
    """bfloat16 products on CUDA; off elsewhere."""
    return torch.autocast(like.device.type, torch.bfloat16, enabled=like.is_cuda)
