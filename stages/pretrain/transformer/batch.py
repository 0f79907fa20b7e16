"""The random batch of a step, drawn on the device: clips, silence, masks, timesteps, noise; the product's objective."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.models.nets.dit.samplers import HEADROOM_SECONDS
from stages.models.nets.dit.timestep_shift import shifted
from stages.pretrain.autoencoder.architecture import DOWNSAMPLING_RATIO, SAMPLE_RATE_HZ
from stages.pretrain.transformer.architecture import diffusion_config
from stages.pretrain.transformer.generator import TrainedGenerator, autocast
from stages.pretrain.transformer.pool import Shelf
from stages.pretrain.transformer.recipe import TransformerRecipe
from stages.train.dataset.inpainting_masks import inpainting_mask
from stages.train.dataset.timesteps import timesteps
from stages.train.model.rectified_flow import Losses, losses, noised, velocity

HEADROOM_FRAMES = int(HEADROOM_SECONDS * SAMPLE_RATE_HZ / DOWNSAMPLING_RATIO)
_NUM_TIMESTEPS, _NUM_MASKS, _MASK_WIDTH = 2**18, 2**12, 64
FRAMES_PER_SECOND = SAMPLE_RATE_HZ / DOWNSAMPLING_RATIO


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """What a forward pass needs; see `stages.train.dataset.batch.Batch` for the fields of the same names."""

    latents_BCT: Tensor
    noise_BCT: Tensor
    timestep_B: Tensor
    real_BT: Tensor
    given_BT: Tensor
    dropped_B: Tensor
    seconds_total_B: Tensor
    ids_BP: Tensor


class BatchDraws:
    """Draws batches from a shelf. The product's own draws of timesteps and masks are tables here, drawn beforehand."""

    def __init__(self, recipe: TransformerRecipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        generator = np.random.default_rng(recipe.seed)
        self.timesteps_N = timesteps(generator, _NUM_TIMESTEPS, recipe.timestep_truncation).to(device)
        masks = [
            inpainting_mask(generator, _MASK_WIDTH, _MASK_WIDTH, recipe.mask_probabilities) for _ in range(_NUM_MASKS)
        ]
        self.masks_NW = torch.from_numpy(np.stack(masks)).to(device)
        self.shift = diffusion_config(recipe.shape)["distribution_shift_options"]

    def batch(self, shelf: Shelf) -> TrainingBatch:
        """A batch of the shelf's length."""
        size, num_frames = self.recipe.batch_size(shelf.length), shelf.length.frames
        # A float32 product may round up to the count itself.
        which_B = (self._unit(size) * shelf.count).minimum(shelf.count - 1).long()
        variant_B = torch.randint(shelf.ids_NVP.shape[1], (size,), device=self.device)
        latents_BCT = shelf.latents_NCT[which_B].float()
        seconds_B = self._total_seconds(shelf.seconds_N[which_B], num_frames)
        content_B = (seconds_B * FRAMES_PER_SECOND).ceil()
        real_B = (content_B + self._silence_frames(size)).clamp(max=num_frames)
        timestep_B = self.timesteps_N[torch.randint(_NUM_TIMESTEPS, (size,), device=self.device)]
        frame_T = torch.arange(num_frames, device=self.device)
        return TrainingBatch(
            latents_BCT=latents_BCT,
            noise_BCT=torch.randn_like(latents_BCT),
            timestep_B=shifted(timestep_B, content_B, self.shift),
            real_BT=frame_T < real_B[:, None],
            given_BT=self._given(frame_T, real_B),
            dropped_B=self._unit(size) < self.recipe.dropout,
            seconds_total_B=seconds_B,
            ids_BP=shelf.ids_NVP[which_B, variant_B].long(),
        )

    def _total_seconds(self, sound_B: Tensor, num_frames: int) -> Tensor:
        """Durations to condition on: the sound's, or that of a file with some silence behind it."""
        recipe, size = self.recipe, len(sound_B)
        room_B = (num_frames / FRAMES_PER_SECOND - sound_B).clamp(0, recipe.longest_extra_seconds)
        return sound_B + (self._unit(size) < recipe.longer_share) * self._unit(size) * room_B

    def _silence_frames(self, size: int) -> Tensor:
        """Frames of silence behind a clip that count: the headroom of a generation, or as in the product's training."""
        mean = self.recipe.silence_seconds * FRAMES_PER_SECOND
        random_B = (-mean * (1 - self._unit(size)).log()).floor()
        return torch.where(self._unit(size) < self.recipe.headroom_share, float(HEADROOM_FRAMES), random_B)

    def _given(self, frame_T: Tensor, real_B: Tensor) -> Tensor:
        """(B, T) bool: a mask of the product, stretched to the real frames of each clip."""
        row_B = torch.randint(len(self.masks_NW), (len(real_B),), device=self.device)
        place_BT = (frame_T * (_MASK_WIDTH / real_B[:, None])).long()
        given_BT = self.masks_NW[row_B].gather(1, place_BT.clamp(max=_MASK_WIDTH - 1))
        return given_BT & (frame_T < real_B[:, None])

    def _unit(self, size: int) -> Tensor:
        return torch.rand(size, device=self.device)


def batch_losses(generator: TrainedGenerator, batch: TrainingBatch) -> Losses:
    """Forward pass and the product's losses."""
    given_B1T = batch.given_BT[:, None].float()
    with autocast(batch.latents_BCT.device):
        predicted_BCT = generator.denoiser(
            noised(batch.latents_BCT, batch.noise_BCT, batch.timestep_B),
            batch.timestep_B,
            generator.conditioning(batch.ids_BP, batch.seconds_total_B),
            given_B1T,
            batch.latents_BCT * given_B1T,
            padding_mask_BT=batch.real_BT,
            dropped_B=batch.dropped_B,
        )
    return losses(predicted_BCT, velocity(batch.latents_BCT, batch.noise_BCT), batch.real_BT, batch.given_BT)
