"""The frozen base with an adapter in it: what a step runs."""

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

# B clips, C latent channels, T frames, L prompt tokens, D conditioning width.


@dataclass(frozen=True)
class Network:
    """Denoiser and conditioner in the base precision, and the fp32 adapter attached to both."""

    denoiser: Denoiser
    conditioner: Conditioner
    adapter: Adapter
    layers: StackedAdapter | None = None
    """The adapter's layers stacked by shape; None computes each layer's weight at each use."""

    def ready(self) -> AbstractContextManager[None]:
        """Within, adapted weights are computed once, for parameters as they are on entry."""
        return nullcontext() if self.layers is None else self.layers.precomputed()

    def padded(self, batch: Batch) -> Tensor:
        """(B, L, D): prompts as the denoiser is given them, before its own layers, in its dtype."""
        return self.conditioner.padded_prompts(batch.hidden).to(self.denoiser.dtype)

    def train(self, learning: bool) -> None:
        """Adapter dropout is active while learning, and only then."""
        self.denoiser.train(learning)
        self.conditioner.train(learning)

    def velocity(self, batch: Batch, noise_BCT: Tensor, prompts_BPE: Tensor | None = None) -> Tensor:
        """(B, C, T) predicted velocity for the batch at its timesteps, in the base precision.

        Args:
            prompts_BPE: `padded` of the batch, where that was made beforehand.
        """
        prompts_BPE = self.padded(batch) if prompts_BPE is None else prompts_BPE
        given_B1T = batch.given_BT[:, None].float()
        predicted_BCT: Tensor = self.denoiser(
            noised(batch.latents_BCT, noise_BCT, batch.timestep_B),
            batch.timestep_B,
            self.conditioner(prompts_BPE, batch.seconds_total_B),
            given_B1T,
            batch.latents_BCT * given_B1T,
            # Without padding no mask is needed, and attention has a faster way.
            padding_mask_BT=None if batch.all_real else batch.real_BT,
            dropped_B=batch.dropped_B,
        )
        return predicted_BCT


def stacked_layers(adapter: Adapter) -> StackedAdapter:
    """All layers of an adapter on a network, by the parts of a step that use them."""
    return stack_adapter(adapter, step_phase)


def step_phase(name: str) -> StepPhase:
    """Where in a step the layer of this name is used."""
    if runs_once_for_all_blocks(name):
        return StepPhase.BATCHED_BLOCKS
    return StepPhase.IN_BLOCKS if runs_inside_blocks(name) else StepPhase.BEFORE_BLOCKS


def batch_losses(network: Network, batch: Batch, *, paired: bool, prompts_BPE: Tensor | None = None) -> Losses:
    """Forward and compare.

    Args:
        paired: deal the batch's noise out by optimal transport; nothing to deal with one clip.
        prompts_BPE: as for `Network.velocity`.
    """
    noise_BCT = batch.noise_BCT
    if paired and len(noise_BCT) > 1:
        noise_BCT = noise_BCT[pairing(batch.latents_BCT, noise_BCT)]
    predicted_BCT = network.velocity(batch, noise_BCT, prompts_BPE)
    return losses(predicted_BCT, velocity(batch.latents_BCT, noise_BCT), batch.real_BT, batch.given_BT)


def loss_scale(batch: Batch, dtype: torch.dtype) -> float:
    """What the loss is multiplied by before the backward pass, and gradients divided by after it.

    Only fp16 needs it: one element's share of the mean loss, 1 / (B C T), is far below 6e-5, under which fp16 loses
    digits. The scale is the power of two below B C T / 256, so that shares become about 2^-8: 16 halvings above where
    fp16 ends, and far enough from its largest number to add up thousands of frames. It follows from the batch's shape
    alone, so there is nothing to store or to adapt, and a power of two rounds nothing. Should a gradient overflow all
    the same, the run stops and says so.
    """
    if not needs_loss_scale(dtype):
        return 1.0
    return float(2 ** max(batch.latents_BCT.numel().bit_length() - 1 - 8, 0))


def needs_loss_scale(dtype: torch.dtype) -> bool:
    """Whether losses of networks of this dtype are multiplied by a `loss_scale`."""
    return dtype is torch.float16
