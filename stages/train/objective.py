"""What the network is asked to predict, and how far off it is.

Rectified flow: x_t = (1 - t) x_0 + t noise, and the network predicts the velocity noise - x_0.
Source: Liu et al. (2022), arXiv:2209.03003, eq. 1, time reversed: t = 1 is noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# B clips, C latent channels, T frames.

_FLOOR = 1e-8


def noised(latents_BCT: Tensor, noise_BCT: Tensor, timestep_B: Tensor) -> Tensor:
    """x_t, float32: t is not rounded to the network's precision here, though the network rounds the t it is told."""
    t_B11 = timestep_B[:, None, None]
    return (1 - t_B11) * latents_BCT + t_B11 * noise_BCT


def velocity(latents_BCT: Tensor, noise_BCT: Tensor) -> Tensor:
    """The regression target, float32."""
    return noise_BCT - latents_BCT


@dataclass(frozen=True)
class Losses:
    """Mean squared error per clip, on the two parts of its real frames."""

    generated_B: Tensor
    """Over frames that were to be generated; 0 where there are none."""
    context_B: Tensor
    """Over frames that were given; 0 where there are none."""

    def per_clip(self, context_weight: float) -> Tensor:
        """(B,): both parts."""
        return self.generated_B + context_weight * self.context_B

    def total(self, context_weight: float) -> Tensor:
        """Mean over the clips: a short clip weighs as much as a long one, and an empty part counts as 0."""
        return self.per_clip(context_weight).mean()


def losses(predicted_BCT: Tensor, velocity_BCT: Tensor, real_BT: Tensor, given_BT: Tensor) -> Losses:
    """Squared velocity error in float32, whatever the network's precision.

    Args:
        real_BT: bool, frames that are trained on (the clip and its extension into silence).
        given_BT: bool, frames handed to the network as context.
    """
    # Taken out before squaring: a padding frame may hold anything, and its gradient must be 0 all the same.
    difference_BCT = torch.where(real_BT[:, None], predicted_BCT.float() - velocity_BCT, 0.0)
    error_BT, channels = difference_BCT.square().sum(dim=1), predicted_BCT.shape[1]
    generated_B = _masked_mean(error_BT, real_BT & ~given_BT, channels)
    return Losses(generated_B, _masked_mean(error_BT, real_BT & given_BT, channels))


def _masked_mean(error_BT: Tensor, where_BT: Tensor, channels: int) -> Tensor:
    return (error_BT * where_BT).sum(dim=1) / (channels * where_BT.sum(dim=1) + _FLOOR)
