"""Shape of the autoencoder of tiny-base, and its section of a model_config.json. Light: standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SAMPLE_RATE_HZ = 44_100
DOWNSAMPLING_RATIO = 4096


@dataclass(frozen=True)
class Shape:
    """Sizes of the autoencoder; what is not listed is as published."""

    latent_channels: int = 64
    width: int = 256
    encoder_depth: int = 2
    decoder_depth: int = 4
    head_width: int = 32
    patch_size: int = 256
    chunk_frames: int = 2
    """Latent frames that attend to each other; the second half of the layers is shifted by half of it."""
    sine_layers: int = 2
    """As `sinusoidal_blocks`: one fewer of the last layers of the decoder has a sine gate."""
    token_noise: float = 0.01


CARRIED_SHAPE = Shape(latent_channels=128, chunk_frames=4)
"""Of the weights that are carried along, and of tiny-base."""


def model_config(shape: Shape) -> dict[str, Any]:
    """A model_config.json of the autoencoder alone."""
    return {"sample_rate": SAMPLE_RATE_HZ, "model": autoencoder_config(shape)}


def autoencoder_config(shape: Shape) -> dict[str, Any]:
    """The autoencoder's section, in the published layout."""
    audio_features = 2 * shape.patch_size
    bottleneck = {"dim": shape.latent_channels, "noise_augment_dim": 0, "noise_regularize": True, "auto_scale": True}
    encoder = {"in_channels": audio_features, "conv_mapping": False, "mask_noise": 0.0}
    decoder = {
        "out_channels": audio_features,
        "conv_mapping": True,
        "mask_noise": shape.token_noise,
        "sinusoidal_blocks": [shape.sine_layers],
    }
    return {
        "pretransform": {"type": "patched", "config": {"patch_size": shape.patch_size, "channels": 2}},
        "encoder": _side(shape, shape.encoder_depth, encoder),
        "decoder": _side(shape, shape.decoder_depth, decoder),
        "bottleneck": {"type": "softnorm", "config": bottleneck},
        "latent_dim": shape.latent_channels,
        "downsampling_ratio": DOWNSAMPLING_RATIO,
        "io_channels": 2,
    }


def _side(shape: Shape, depth: int, own: Mapping[str, Any]) -> dict[str, Any]:
    stride = DOWNSAMPLING_RATIO // shape.patch_size
    common = {
        "channels": shape.width,
        "c_mults": [1],
        "strides": [stride],
        "latent_dim": shape.latent_channels,
        "transformer_depths": [depth],
        "differential": True,
        "dyt": True,
        "dim_heads": shape.head_width,
        "variable_stride": True,
        "chunk_size": shape.chunk_frames * stride,
        "chunk_midpoint_shift": True,
    }
    return {"type": "taae_v2", "config": {**common, **own}}
