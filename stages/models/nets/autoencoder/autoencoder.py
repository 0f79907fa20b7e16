"""SAME, the audio autoencoder: samples to latents and back.

B batch, A audio channels, L samples, P samples of a patch, C latent channels, T latent frames, W width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.nets.autoencoder.bottleneck import SoftNormBottleneck
from stages.models.nets.autoencoder.chunking import CHUNK_FRAMES, OVERLAP_FRAMES, Chunk, chunks
from stages.models.nets.autoencoder.noise import Noise
from stages.models.nets.autoencoder.resampling_blocks import (
    Downsampling,
    ResamplingConfig,
    Upsampling,
    resampling_config,
)
from stages.models.nets.config_checks import refuse_unknown, require, section

MIN_SILENCE_FRAMES = 16
"""Silence behind a clip, so that its latents are those of a clip inside a long, padded recording."""


@dataclass(frozen=True)
class DecodeNoise:
    """The two places where decoding draws noise; as published, both are on, in evaluation mode too."""

    bottleneck: Noise = None
    tokens: Noise = None


NO_NOISE = DecodeNoise()
"""No noise: the same latents give the same audio."""


class Encoder(nn.Module):
    """Patches to latent features."""

    def __init__(self, config: ResamplingConfig) -> None:
        super().__init__()
        # Keys are positions of the published layout, which counts transposes between them.
        self.layers = nn.ModuleDict({"0": Downsampling(config), "2": nn.Linear(config.width, config.latent_channels)})

    @property
    def downsampling(self) -> Downsampling:
        """The downsampling transformer: nearly all of the work."""
        return cast(Downsampling, self.layers["0"])

    def forward(self, patch_BCL: Tensor, token_noise: Noise) -> Tensor:
        return self.layers["2"](self.downsampling(patch_BCL, token_noise)).transpose(1, 2)


class Decoder(nn.Module):
    """Latent features to patches."""

    def __init__(self, config: ResamplingConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"1": nn.Linear(config.latent_channels, config.width), "3": Upsampling(config)})

    def forward(self, feature_BCT: Tensor, token_noise: Noise) -> Tensor:
        return self.layers["3"](self.layers["1"](feature_BCT.transpose(1, 2)), token_noise)


class Autoencoder(nn.Module):
    """The autoencoder of a model_config.json, of a whole model or of a stand-alone autoencoder file.

    Always used frozen: `encode` and `decode` take no gradients. Audio is float, (batch, channels, samples), at
    `sample_rate` hertz.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        parts = autoencoder_section(config)
        where = "autoencoder"
        refuse_unknown(
            where,
            parts,
            (
                "pretransform",
                "encoder",
                "decoder",
                "bottleneck",
                "latent_dim",
                "downsampling_ratio",
                "io_channels",
                "soft_clip",
            ),
        )
        patching = section(where, parts, "pretransform")
        require(where, patching, "type", ("patched",))
        self.sample_rate: int = config["sample_rate"]
        self.audio_channels: int = parts["io_channels"]
        self.latent_channels: int = parts["latent_dim"]
        self.downsampling_ratio: int = parts["downsampling_ratio"]
        self.patch_size: int = patching["config"]["patch_size"]
        self.soft_clip = bool(parts.get("soft_clip", False))
        encoder, decoder = (resampling_config(side, section(where, parts, side)) for side in ("encoder", "decoder"))
        self.encoder, self.decoder = Encoder(encoder), Decoder(decoder)
        self.bottleneck = SoftNormBottleneck(section(where, parts, "bottleneck"))
        self.silence_frames = max(MIN_SILENCE_FRAMES, encoder.reach_frames)
        self.frame_unit = encoder.pad_unit // encoder.stride

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; inputs are cast to it."""
        return self.bottleneck.scaling_factor.dtype

    @torch.no_grad()
    def encode(self, audio_BAL: Tensor, token_noise: Noise = None) -> Tensor:
        """Latents (B, C, T) of whole signals, zero-padded to whole patches and to the encoder's chunk.

        T is ceil(L / downsampling_ratio), with chunked attention rounded up to whole chunks.

        Args:
            token_noise: for the learned tokens, off by default; a tensor has shape (B * T, 1, W).
        """
        return self.bottleneck.encode(self.encoder(self.patched(audio_BAL.to(self.dtype)), token_noise))

    @torch.no_grad()
    def decode(self, latents_BCT: Tensor, noise: DecodeNoise = NO_NOISE) -> Tensor:
        """Audio (B, A, L). L is T * downsampling_ratio, with chunked attention rounded up to whole chunks.

        Noise tensors have the shapes (B, C, T) and (B * T', patches of a frame, W), T' being T after that rounding.
        """
        feature_BCT = self.bottleneck.decode(latents_BCT.to(self.dtype), noise.bottleneck)
        audio_BAL = self.unpatched(self.decoder(feature_BCT, noise.tokens))
        return audio_BAL.tanh() if self.soft_clip else audio_BAL

    def patched(self, audio_BAL: Tensor) -> Tensor:
        """(B, A * P, patches): channel-major; the last patch is filled with zeros."""
        audio_BAL = F.pad(audio_BAL, (0, -audio_BAL.shape[-1] % self.patch_size))
        return audio_BAL.unflatten(-1, (-1, self.patch_size)).transpose(2, 3).flatten(1, 2)

    def unpatched(self, patch_BCL: Tensor) -> Tensor:
        """The inverse of `patched`."""
        return patch_BCL.unflatten(1, (self.audio_channels, self.patch_size)).transpose(2, 3).flatten(2)

    def encode_chunked(
        self,
        audio_BAL: Tensor,
        chunk_frames: int = CHUNK_FRAMES,
        overlap_frames: int = OVERLAP_FRAMES,
        token_noise: Noise = None,
    ) -> Tensor:
        """Latents in bounded memory.

        From one chunk on T is floor(L / downsampling_ratio); a shorter signal is encoded as `encode` does.
        """
        ratio, total = self.downsampling_ratio, audio_BAL.shape[-1]
        if total < chunk_frames * ratio:
            return self.encode(audio_BAL, token_noise)
        out_BCT = audio_BAL.new_empty(audio_BAL.shape[0], self.latent_channels, total // ratio, dtype=self.dtype)
        for chunk in chunks(total, ratio, chunk_frames, overlap_frames):
            piece = audio_BAL[..., chunk.start : chunk.start + chunk_frames * ratio]
            _write(out_BCT, self.encode(piece, token_noise), chunk)
        return out_BCT

    def decode_chunked(
        self,
        latents_BCT: Tensor,
        chunk_frames: int = CHUNK_FRAMES,
        overlap_frames: int = OVERLAP_FRAMES,
        noise: DecodeNoise = NO_NOISE,
    ) -> Tensor:
        """Audio in bounded memory.

        From one chunk on L is T * downsampling_ratio; a shorter signal is decoded as `decode` does.
        """
        ratio, total = self.downsampling_ratio, latents_BCT.shape[-1]
        if total < chunk_frames:
            return self.decode(latents_BCT, noise)
        out_BAL = latents_BCT.new_empty(latents_BCT.shape[0], self.audio_channels, total * ratio, dtype=self.dtype)
        for chunk in chunks(total, 1, chunk_frames, overlap_frames):
            piece = latents_BCT[..., chunk.start : chunk.start + chunk_frames]
            _write(out_BAL, self.decode(piece, noise), chunk, ratio)
        return out_BAL

    def encode_clip(self, audio_AL: Tensor, token_noise: Noise = None) -> Tensor:
        """Latents (C, ceil(L / downsampling_ratio)) of one clip, as if silence went on behind it."""
        return self.encode_clips([audio_AL], token_noise=token_noise)[0]

    def encode_clips(
        self, audios: Sequence[Tensor], *, chunk_frames: int | None = None, token_noise: Noise = None
    ) -> list[Tensor]:
        """`encode_clip` of several clips (A, L_i) in one batch; see `encode_batch`."""
        latents_BCT, num_frames = self.encode_batch(audios, chunk_frames=chunk_frames, token_noise=token_noise)
        return [latents_CT[:, :frames] for latents_CT, frames in zip(latents_BCT, num_frames, strict=True)]

    def num_frames(self, num_samples: int) -> int:
        """Latent frames of a clip."""
        return -(-num_samples // self.downsampling_ratio)

    def encode_batch(
        self, audios: Sequence[Tensor], *, chunk_frames: int | None = None, token_noise: Noise = None
    ) -> tuple[Tensor, list[int]]:
        """Latents (B, C, T) of clips (A, L_i), and how many of each one's frames are its own.

        A clip's latents depend neither on its neighbours nor on how far the batch pads it: so much silence follows
        every clip that nothing behind it, the end of the batch included, reaches its frames through local attention.

        Args:
            chunk_frames: encode in chunks of this many frames, for bounded memory; equal up to rounding.
        """
        ratio = self.downsampling_ratio
        num_frames = [self.num_frames(audio.shape[-1]) for audio in audios]
        total = max(num_frames) + self.silence_frames
        if chunk_frames is not None:
            total = self._whole_chunks(total, chunk_frames)
        padded_BAL = torch.stack([F.pad(audio, (0, total * ratio - audio.shape[-1])) for audio in audios])
        if chunk_frames is None:
            return self.encode(padded_BAL, token_noise), num_frames
        overlap_frames = 2 * self.silence_frames
        return self.encode_chunked(padded_BAL, chunk_frames, overlap_frames, token_noise), num_frames

    def _whole_chunks(self, num_frames: int, chunk_frames: int) -> int:
        """`num_frames` rounded up so that chunks, overlapping by twice the silence, end exactly with the signal."""
        overlap = 2 * self.silence_frames
        if chunk_frames <= overlap or chunk_frames % self.frame_unit:
            rule = f"above {overlap} and a multiple of {self.frame_unit}"
            raise ValueError(f"chunk_frames must be {rule}; got {chunk_frames}")
        hop = chunk_frames - overlap
        return chunk_frames + max(0, -(-(num_frames - chunk_frames) // hop)) * hop


def autoencoder_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a model_config.json that describes the autoencoder: a whole model's, or a stand-alone file's."""
    model = section("model", config, "model")
    if "pretransform" in model and "config" in model["pretransform"] and "encoder" in model["pretransform"]["config"]:
        pretransform = model["pretransform"]
        require("pretransform", pretransform, "type", ("autoencoder",))
        require("pretransform", pretransform, "scale", (1, 1.0), 1.0)
        return section("pretransform", pretransform, "config")
    return model


def _write(out: Tensor, piece: Tensor, chunk: Chunk, unit: int = 1) -> None:
    """Put a chunk's kept frames (of `unit` entries each) where they belong."""
    kept = slice(chunk.kept.start * unit, chunk.kept.stop * unit)
    start = (chunk.destination + chunk.kept.start) * unit
    out[..., start : start + kept.stop - kept.start] = piece[..., kept]
