"""Rectified flow: noised latents, the velocity to predict, and the masked mean squared error of a prediction.

x_t = (1 - t) x_0 + t noise, and the network predicts the velocity noise - x_0.
Source: Liu et al. (2022), arXiv:2209.03003, eq. 1, time reversed: t = 1 is noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# B clips, C latent channels, T frames: the legend of ARCHITECTURE.md.

_EPS = 1e-8
"""Added to the number of values that a mean is over."""


def noised(latents_BCT: Tensor, noise_BCT: Tensor, timestep_B: Tensor) -> Tensor:
    """x_t, float32: t is not rounded to the network's precision here, though the network rounds the t it is given."""
    t_B11 = timestep_B[:, None, None]
    return (1 - t_B11) * latents_BCT + t_B11 * noise_BCT


def velocity(latents_BCT: Tensor, noise_BCT: Tensor) -> Tensor:
    """The regression target, float32."""
    return noise_BCT - latents_BCT


@dataclass(frozen=True)
class Losses:
    """Mean squared error per clip, over the generated and over the given part of its real frames."""

    generated_B: Tensor
    """Error over frames to be generated; 0 where there are none."""
    context_B: Tensor
    """Error over frames given as context; 0 where there are none."""

    def per_clip(self, context_weight: float) -> Tensor:
        """(B,): the loss of each clip, its context weighted."""
        return torch.add(self.generated_B, self.context_B, alpha=context_weight)

    def total(self, context_weight: float) -> Tensor:
        """Mean over the clips: a short clip weighs as much as a long one, and an empty part counts as 0."""
        return self.per_clip(context_weight).mean()


def losses(predicted_BCT: Tensor, velocity_BCT: Tensor, real_BT: Tensor, given_BT: Tensor) -> Losses:
    """Squared velocity error in float32, whatever the network's precision.

    Args:
        velocity_BCT: float32.
        real_BT: bool, frames that are trained on (the clip and its extension into silence).
        given_BT: bool, frames given to the network as context.
    """
    return Losses(*_MaskedMeanSquares.apply(predicted_BCT, velocity_BCT, real_BT, given_BT))


class _MaskedMeanSquares(torch.autograd.Function):
    """Mean squared error over both parts, (B,) each. The explicit backward is a third of autograd's kernels."""

    @staticmethod
    def forward(
        ctx: Any, predicted_BCT: Tensor, velocity_BCT: Tensor, real_BT: Tensor, given_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        part_2BT = torch.stack([real_BT & ~given_BT, real_BT & given_BT])
        count_2B = velocity_BCT.shape[1] * part_2BT.sum(dim=-1) + _EPS
        # Masked before squaring: a padding frame may hold anything, and its gradient must be 0 all the same.
        difference_BCT = (predicted_BCT - velocity_BCT).masked_fill_(~real_BT[:, None], 0.0)
        # The gradient of x^2 / n is x / (n / 2).
        ctx.save_for_backward(difference_BCT, given_BT, count_2B / 2)
        ctx.dtype = predicted_BCT.dtype
        error_BT = difference_BCT.square().sum(dim=1)
        generated_B, context_B = ((error_BT * part_2BT).sum(dim=-1) / count_2B).unbind()
        return generated_B, context_B

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        difference_BCT, given_BT, half_count_2B = ctx.saved_tensors
        generated_B1, context_B1 = ((d_B / half_B)[:, None] for d_B, half_B in zip(grads, half_count_2B, strict=True))
        factor_BT = torch.where(given_BT, context_B1, generated_B1)
        # Multiplied in float32 and rounded on the way out.
        d_predicted_BCT = torch.empty_like(difference_BCT, dtype=ctx.dtype)
        return torch.mul(difference_BCT, factor_BT[:, None], out=d_predicted_BCT), None, None, None
