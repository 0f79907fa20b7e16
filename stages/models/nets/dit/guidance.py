"""Classifier-free guidance of a velocity, with the projection of adaptive projected guidance.

B batch, C latent channels, T latent frames, S context tokens, D conditioning width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.models.nets.dit.conditioning import Conditioning
from stages.models.nets.dit.transformer import Denoiser


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly the conditioning is followed."""

    scale: float = 1.0
    """1 = no guidance."""
    projection: float = 1.0
    """Share of the guidance that is made orthogonal to the conditional prediction; 0 = plain guidance."""
    rescale: float = 0.0
    """Share of the result that is brought back to the conditional velocity's deviation over channels."""
    norm_threshold: float = 0.0
    """Longest guidance, as a norm over channels and frames; 0 = no limit."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Timesteps, both ends included, within which guidance acts."""

    def acts_at(self, timestep: float) -> bool:
        """Is anything to be done at this timestep?"""
        return self.scale != 1.0 and self.interval[0] <= timestep <= self.interval[1]


def guided_velocity(
    denoiser: Denoiser,
    noised_BCT: Tensor,
    timestep_B: Tensor,
    conditioning: Conditioning,
    guidance: Guidance,
    *,
    negative_context_BSD: Tensor | None = None,
    inpaint_mask_B1T: Tensor | None = None,
    masked_latents_BCT: Tensor | None = None,
    padding_mask_BT: Tensor | None = None,
) -> Tensor:
    """(B, C, T) velocity, guided away from the empty context, or from a negative prompt's.

    Conditional and unconditional halves run as one batch of 2 B. The interval is judged by the timestep of item 0.
    Guided, the result is float32 whatever the network's dtype; otherwise it is the network's own output.

    Args:
        negative_context_BSD: a negative prompt's context, zero where it has no tokens, its duration token kept.
    """
    given = (inpaint_mask_B1T, masked_latents_BCT, padding_mask_BT)
    if not guidance.acts_at(timestep_B[0].item()):
        return denoiser(noised_BCT, timestep_B, conditioning, *given)
    context_BSE = conditioning.context_BSE
    other_BSD = torch.zeros_like(context_BSE) if negative_context_BSD is None else negative_context_BSD.to(context_BSE)
    doubled = Conditioning(torch.cat([context_BSE, other_BSD]), _twice(conditioning.global_BE))
    velocity = denoiser(
        _twice(noised_BCT), _twice(timestep_B), doubled, *(None if x is None else _twice(x) for x in given)
    )
    conditional_BCT, unconditional_BCT = velocity.chunk(2)
    return adaptive_projected_guidance(
        noised_BCT, timestep_B, conditional_BCT, unconditional_BCT, guidance, padding_mask_BT
    )


def adaptive_projected_guidance(
    noised_BCT: Tensor,
    timestep_B: Tensor,
    conditional_BCT: Tensor,
    unconditional_BCT: Tensor,
    guidance: Guidance,
    padding_mask_BT: Tensor | None = None,
) -> Tensor:
    """The two velocities as one, float32. Works on the predicted data x - t v.

    Source: Ho & Salimans 2022, arXiv:2207.12598; Sadat et al. 2024, arXiv:2410.02416 (projection, norm threshold);
    Lin et al. 2023, arXiv:2305.08891 (rescale).
    """
    timestep_B11 = timestep_B.float()[:, None, None]
    clean_BCT = noised_BCT - timestep_B11 * conditional_BCT
    apart_BCT = clean_BCT - (noised_BCT - timestep_B11 * unconditional_BCT)
    mask_B1T = None if padding_mask_BT is None else padding_mask_BT[:, None].to(apart_BCT.dtype)
    if guidance.norm_threshold > 0:
        size_B11 = _norm(apart_BCT if mask_B1T is None else apart_BCT * mask_B1T)
        apart_BCT = apart_BCT * (guidance.norm_threshold / size_B11).clamp(max=1)
    step_BCT = _projected(apart_BCT, clean_BCT, mask_B1T, guidance.projection)
    velocity_BCT = (noised_BCT - (clean_BCT + (guidance.scale - 1) * step_BCT)) / timestep_B11
    if guidance.rescale == 0:
        return velocity_BCT
    ratio_B1T = conditional_BCT.std(dim=1, keepdim=True) / velocity_BCT.std(dim=1, keepdim=True)
    return guidance.rescale * velocity_BCT * ratio_B1T + (1 - guidance.rescale) * velocity_BCT


def _projected(apart_BCT: Tensor, clean_BCT: Tensor, mask_B1T: Tensor | None, share: float) -> Tensor:
    """`share` of the difference without its part along the prediction; that share is zero in padding."""
    if share == 0:
        return apart_BCT
    if mask_B1T is None:
        direction = clean_BCT / _norm(clean_BCT).clamp(min=1e-12)
        orthogonal = apart_BCT - _dot(apart_BCT, direction) * direction
    else:
        real = clean_BCT * mask_B1T
        direction = real / _norm(real).clamp(min=1e-8)
        orthogonal = (apart_BCT - _dot(apart_BCT, direction) * direction) * mask_B1T
    return orthogonal if share == 1 else share * orthogonal + (1 - share) * apart_BCT


def _norm(x_BCT: Tensor) -> Tensor:
    """(B, 1, 1), over channels and frames."""
    return x_BCT.norm(dim=(1, 2), keepdim=True)


def _dot(x_BCT: Tensor, y_BCT: Tensor) -> Tensor:
    """(B, 1, 1), over channels and frames."""
    return (x_BCT * y_BCT).sum(dim=(1, 2), keepdim=True)


def _twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])
