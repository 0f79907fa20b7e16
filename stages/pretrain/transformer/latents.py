"""Latents of synthesised sounds by the autoencoder that is carried along."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.pretrain.autoencoder.architecture import DOWNSAMPLING_RATIO
from stages.pretrain.autoencoder.carried import encoded
from stages.pretrain.synthesis.facts import SoundFacts
from stages.pretrain.synthesis.synthesiser import Synthesiser
from stages.pretrain.transformer.recipe import Length


@dataclass(frozen=True)
class EncodedSounds:
    """Sounds of one length of batches."""

    latents_BCT: Tensor
    """float16, encoded with the silence behind each sound."""
    facts: list[SoundFacts]


def sounds(synthesiser: Synthesiser, autoencoder: Autoencoder, length: Length, count: int) -> EncodedSounds:
    """Fresh sounds of at most the content of this length, and their latents."""
    batch = synthesiser.batch(count, length.content_frames * DOWNSAMPLING_RATIO)
    return EncodedSounds(encoded(autoencoder, batch.audio_BAX, length.frames), batch.facts)
