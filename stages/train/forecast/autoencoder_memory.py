"""Memory of the autoencoder where audio is encoded inside the training loop: its weights, and the work on one clip."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from stages.models.nets.autoencoder.autoencoder import Autoencoder

_TOKEN_TENSORS, _NARROW_TENSORS, _AUDIO_TENSORS = 23, 7, 3
"""Alive at a time at most while a clip is encoded: tensors of all tokens, further ones in 16 bits, whose norms work in
float32, and tensors of all audio. Fitted to what the published autoencoders do: within 5 percent from 10 s on."""


def encoding_bytes(config: Mapping[str, Any], num_samples: int, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of the autoencoder's weights, and the most it holds beside them while it encodes a clip of this length.

    Raises:
        UnsupportedModelConfig.
    """
    autoencoder = _on_meta(json.dumps(config))
    encoder, ratio = autoencoder.encoder.downsampling.config, autoencoder.downsampling_ratio
    tokens = (_TOKEN_TENSORS + (_NARROW_TENSORS if dtype.itemsize < 4 else 0)) * encoder.group * encoder.width
    audio = _AUDIO_TENSORS * autoencoder.audio_channels * ratio
    num_frames = -(-num_samples // ratio) + autoencoder.silence_frames
    num_values = sum(parameter.numel() for parameter in autoencoder.parameters())
    return num_values * dtype.itemsize, num_frames * (tokens + audio) * dtype.itemsize


@lru_cache(2)
def _on_meta(config_json: str) -> Autoencoder:
    with torch.device("meta"):
        return Autoencoder(json.loads(config_json))
