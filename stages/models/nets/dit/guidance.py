"""Classifier-free guidance (CFG) of the velocity, with adaptive projected guidance (APG) and CFG rescale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.models.nets.dit.conditioning import Conditioning
from stages.models.nets.dit.transformer import Denoiser


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Settings of classifier-free guidance."""

    scale: float = 1.0
    """CFG scale; 1 = no guidance."""
    projection: float = 1.0
    """Fraction of APG: 1 = only guidance orthogonal to the conditional prediction, 0 = plain CFG."""
    rescale: float = 0.0
    """CFG rescale: fraction of the result rescaled to the channel standard deviation of the conditional velocity."""
    norm_threshold: float = 0.0
    """Upper bound of the norm of the guidance, over channels and frames; 0 = none."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Timesteps in which guidance is applied, both ends included."""

    def acts_at(self, timestep: float) -> bool:
        """Whether guidance changes the velocity at this timestep."""
        return self.scale != 1.0 and self.interval[0] <= timestep <= self.interval[1]


def guided_velocity(
    denoiser: Denoiser,
    noised_BCT: Tensor,
    timestep_B: Tensor,
    conditioning: Conditioning,
    guidance: Guidance,
    *,
    negative_context_BSE: Tensor | None = None,
    inpaint_mask_B1T: Tensor | None = None,
    masked_latents_BCT: Tensor | None = None,
    padding_mask_BT: Tensor | None = None,
) -> Tensor:
    """(B, C, T) velocity, guided away from the empty context or from that of a negative prompt.

    Conditional and unconditional halves run as one batch of 2 B. The timestep of item 0 decides whether the interval
    applies. With guidance the result is float32 in any dtype of the network, otherwise the network's own output.

    Args:
        negative_context_BSE: context of a negative prompt: zeros at padding positions, its duration token kept.
    """
    masks = (inpaint_mask_B1T, masked_latents_BCT, padding_mask_BT)
    if not guidance.acts_at(timestep_B[0].item()):
        return denoiser(noised_BCT, timestep_B, conditioning, *masks)
    context_BSE = conditioning.context_BSE
    uncond_BSE = torch.zeros_like(context_BSE) if negative_context_BSE is None else negative_context_BSE.to(context_BSE)
    both = Conditioning(torch.cat([context_BSE, uncond_BSE]), _twice(conditioning.global_BE))
    velocity = denoiser(
        _twice(noised_BCT), _twice(timestep_B), both, *(None if x is None else _twice(x) for x in masks)
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
    """The guided velocity, float32, computed on the denoised predictions x - t v.

    Source: Ho & Salimans 2022, arXiv:2207.12598 (CFG); Sadat et al. 2024, arXiv:2410.02416 (APG: projection, norm
    threshold); Lin et al. 2023, arXiv:2305.08891 (rescale).
    """
    timestep_B11 = timestep_B.float()[:, None, None]
    denoised_BCT = noised_BCT - timestep_B11 * conditional_BCT
    guidance_BCT = denoised_BCT - (noised_BCT - timestep_B11 * unconditional_BCT)
    mask_B1T = None if padding_mask_BT is None else padding_mask_BT[:, None].to(guidance_BCT.dtype)
    if guidance.norm_threshold > 0:
        norm_B11 = _norm(guidance_BCT if mask_B1T is None else guidance_BCT * mask_B1T)
        guidance_BCT = guidance_BCT * (guidance.norm_threshold / norm_B11).clamp(max=1)
    update_BCT = _projected(guidance_BCT, denoised_BCT, mask_B1T, guidance.projection)
    velocity_BCT = (noised_BCT - (denoised_BCT + (guidance.scale - 1) * update_BCT)) / timestep_B11
    if guidance.rescale == 0:
        return velocity_BCT
    ratio_B1T = conditional_BCT.std(dim=1, keepdim=True) / velocity_BCT.std(dim=1, keepdim=True)
    return guidance.rescale * velocity_BCT * ratio_B1T + (1 - guidance.rescale) * velocity_BCT


def _projected(guidance_BCT: Tensor, denoised_BCT: Tensor, mask_B1T: Tensor | None, fraction: float) -> Tensor:
    """The guidance with `fraction` of it replaced by its part orthogonal to the prediction (zero in padding)."""
    if fraction == 0:
        return guidance_BCT
    if mask_B1T is None:
        direction = denoised_BCT / _norm(denoised_BCT).clamp(min=1e-12)
        orthogonal = guidance_BCT - _dot(guidance_BCT, direction) * direction
    else:
        masked = denoised_BCT * mask_B1T
        direction = masked / _norm(masked).clamp(min=1e-8)
        orthogonal = (guidance_BCT - _dot(guidance_BCT, direction) * direction) * mask_B1T
    return orthogonal if fraction == 1 else fraction * orthogonal + (1 - fraction) * guidance_BCT


def _norm(x_BCT: Tensor) -> Tensor:
    """(B, 1, 1): 2-norm over channels and frames."""
    return x_BCT.norm(dim=(1, 2), keepdim=True)


def _dot(x_BCT: Tensor, y_BCT: Tensor) -> Tensor:
    """(B, 1, 1): inner product over channels and frames."""
    return (x_BCT * y_BCT).sum(dim=(1, 2), keepdim=True)


def _twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])
