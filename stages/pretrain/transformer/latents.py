"""Latents of synthesised sounds by the autoencoder that is carried along."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.pretrain.autoencoder.architecture import DOWNSAMPLING_RATIO, Shape, model_config
from stages.pretrain.synthesis.facts import SoundFacts
from stages.pretrain.synthesis.synthesiser import Synthesiser
from stages.pretrain.transformer.recipe import Length

CARRIED = Path(__file__).parents[1] / "carried/autoencoder.safetensors"
CARRIED_SHAPE = Shape(latent_channels=128, chunk_frames=4)
_FRAMES_AT_A_TIME = 16_384
"""Of the autoencoder; some 0.3 GB for each intermediate result."""


@dataclass(frozen=True)
class EncodedSounds:
    """Sounds of one length of batches."""

    latents_BCT: Tensor
    """float16, encoded with the silence behind each sound."""
    facts: list[SoundFacts]


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


def sounds(synthesiser: Synthesiser, autoencoder: Autoencoder, length: Length, count: int) -> EncodedSounds:
    """Fresh sounds of at most the content of this length, and their latents."""
    batch = synthesiser.batch(count, length.content_frames * DOWNSAMPLING_RATIO)
    return EncodedSounds(encoded(autoencoder, batch.audio_BAX, length.frames), batch.facts)
