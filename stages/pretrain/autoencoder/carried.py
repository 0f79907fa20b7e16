"""The trained autoencoder that is carried along, and what sounds are through it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.pretrain.autoencoder.architecture import CARRIED_SHAPE, DOWNSAMPLING_RATIO, model_config

CARRIED = Path(__file__).parents[1] / "carried/autoencoder.safetensors"
_FRAMES_AT_A_TIME = 16_384
"""Of the autoencoder; some 0.3 GB for each intermediate result."""


def carried_autoencoder(device: torch.device, file: Path = CARRIED) -> Autoencoder:
    """The frozen autoencoder, float32."""
    autoencoder = Autoencoder(model_config(CARRIED_SHAPE))
    autoencoder.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    return autoencoder.to(device).eval().requires_grad_(False)


@torch.no_grad()
def encoded(autoencoder: Autoencoder, audio_BAX: Tensor, num_frames: int) -> Tensor:
    """Latents (B, C, num_frames), float16, of sounds followed by silence."""
    audio_BAX = F.pad(audio_BAX, (0, num_frames * DOWNSAMPLING_RATIO - audio_BAX.shape[-1]))
    parts = audio_BAX.split(max(1, _FRAMES_AT_A_TIME // num_frames))
    return torch.cat([autoencoder.encode(part).half() for part in parts])


@torch.no_grad()
def decoded(autoencoder: Autoencoder, latents_BCT: Tensor) -> Tensor:
    """Audio (B, 2, X), float32, of latents; no noise is added."""
    parts = latents_BCT.split(max(1, _FRAMES_AT_A_TIME // latents_BCT.shape[-1]))
    return torch.cat([autoencoder.decode(part)[..., : part.shape[-1] * DOWNSAMPLING_RATIO] for part in parts])


def reconstructed(autoencoder: Autoencoder, audio_BAX: Tensor) -> Tensor:
    """The sounds, encoded and decoded."""
    chunk = CARRIED_SHAPE.chunk_frames
    num_frames = -(-audio_BAX.shape[-1] // (DOWNSAMPLING_RATIO * chunk)) * chunk
    latents_BCT = encoded(autoencoder, audio_BAX, num_frames)
    return decoded(autoencoder, latents_BCT.float())[..., : audio_BAX.shape[-1]].clamp(-1, 1)
