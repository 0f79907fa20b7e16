"""The trained network, a frozen base with an adapter attached: forward pass, losses and loss scale."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.adapters.attach import Adapter
from stages.adapters.stacked.layer_group import StepPhase
from stages.adapters.stacked.stacked_adapter import StackedAdapter, stack_adapter
from stages.models.nets.dit.conditioning import Conditioner
from stages.models.nets.dit.transformer import Denoiser, runs_inside_blocks, runs_once_for_all_blocks
from stages.train.dataset.batch import Batch
from stages.train.dataset.ot_coupling import pairing
from stages.train.model.rectified_flow import Losses, losses, noised, velocity

# B clips, C latent channels, T frames, P prompt tokens, E conditioning width: the legend of ARCHITECTURE.md.


@dataclass(frozen=True)
class Network:
    """Denoiser and conditioner in the base precision, and the fp32 adapter attached to both."""

    denoiser: Denoiser
    conditioner: Conditioner
    adapter: Adapter
    layers: StackedAdapter | None = None
    """The adapter's layers stacked by shape; None computes each layer's weight at each use."""

    def precomputed_weights(self) -> AbstractContextManager[None]:
        """Context in which adapted weights are computed once, from the parameters as they are on entry."""
        return nullcontext() if self.layers is None else self.layers.precomputed()

    def padded_prompts(self, batch: Batch) -> Tensor:
        """(B, P, E): prompts padded to one length, as the denoiser takes them, in its dtype."""
        return self.conditioner.padded_prompts(batch.hidden).to(self.denoiser.dtype)

    def train(self, mode: bool) -> None:
        """Switch training mode, in which adapter dropout is active, on or off."""
        self.denoiser.train(mode)
        self.conditioner.train(mode)

    def velocity(self, batch: Batch, noise_BCT: Tensor, prompts_BPE: Tensor | None = None) -> Tensor:
        """(B, C, T) predicted velocity for the batch at its timesteps, in the base precision.

        Args:
            prompts_BPE: `padded_prompts` of the batch, if computed beforehand.
        """
        prompts_BPE = self.padded_prompts(batch) if prompts_BPE is None else prompts_BPE
        given_B1T = batch.given_BT[:, None].float()
        predicted_BCT: Tensor = self.denoiser(
            noised(batch.latents_BCT, noise_BCT, batch.timestep_B),
            batch.timestep_B,
            self.conditioner(prompts_BPE, batch.seconds_total_B),
            given_B1T,
            batch.latents_BCT * given_B1T,
            # Attention is faster without a mask, which is needed only where there is padding.
            padding_mask_BT=None if batch.all_real else batch.real_BT,
            dropped_B=batch.dropped_B,
        )
        return predicted_BCT


def stacked_layers(adapter: Adapter) -> StackedAdapter:
    """The layers of an adapter stacked by shape and by the phase of a step that uses them."""
    return stack_adapter(adapter, step_phase)


def step_phase(name: str) -> StepPhase:
    """The phase of a step that uses the layer of this name."""
    if runs_once_for_all_blocks(name):
        return StepPhase.BATCHED_BLOCKS
    return StepPhase.IN_BLOCKS if runs_inside_blocks(name) else StepPhase.BEFORE_BLOCKS


def batch_losses(network: Network, batch: Batch, *, paired: bool, prompts_BPE: Tensor | None = None) -> Losses:
    """Forward pass of a batch, and its losses.

    Args:
        paired: pair the batch's noise with its clips by optimal transport; without effect with one clip.
        prompts_BPE: as for `Network.velocity`.
    """
    noise_BCT = batch.noise_BCT
    if paired and len(noise_BCT) > 1:
        noise_BCT = noise_BCT[pairing(batch.latents_BCT, noise_BCT)]
    predicted_BCT = network.velocity(batch, noise_BCT, prompts_BPE)
    return losses(predicted_BCT, velocity(batch.latents_BCT, noise_BCT), batch.real_BT, batch.given_BT)


def loss_scale(batch: Batch, dtype: torch.dtype) -> float:
    """The factor of the loss before the backward pass; gradients are divided by it afterwards.

    Only fp16 needs it: one element's share of the mean loss, 1 / (B C T), is far below 6e-5, where fp16 becomes
    subnormal. The scale is the power of two below B C T / 256, so that shares become about 2^-8: 2^16 above the
    smallest number of fp16, and far enough below the largest to add up thousands of frames. It follows from the shape
    of the batch alone, so there is no state to store or adapt, and a power of two rounds nothing. If a gradient
    overflows all the same, the run stops and says so.
    """
    if not needs_loss_scale(dtype):
        return 1.0
    return float(2 ** max(batch.latents_BCT.numel().bit_length() - 1 - 8, 0))


def needs_loss_scale(dtype: torch.dtype) -> bool:
    """Whether losses of networks of this dtype are multiplied by a `loss_scale`."""
    return dtype is torch.float16
