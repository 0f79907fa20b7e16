"""SAME, the audio autoencoder: waveform to latents and back, whole or in overlapping chunks.

Patches are (B, audio channels times patch size, number of patches).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.errors import UnsupportedModelConfig
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
"""Silence appended to a clip at least, so that its latents equal those of the clip inside a long, padded recording."""


@dataclass(frozen=True)
class DecodeNoise:
    """Noise that decoding adds in two places; in the published models both are on, in evaluation mode too."""

    bottleneck: Noise = None
    """Added to the latents, a thousandth of their standard deviation."""
    tokens: Noise = None
    """Added to the learned tokens, times `mask_noise`."""


NO_NOISE = DecodeNoise()
"""Deterministic decoding: the same latents give the same audio."""


class Encoder(nn.Module):
    """Patches to features (B, C, T) before the bottleneck."""

    def __init__(self, config: ResamplingConfig) -> None:
        super().__init__()
        # Keys are positions in the published module list, which counts the transposes between them.
        self.layers = nn.ModuleDict({"0": Downsampling(config), "2": nn.Linear(config.width, config.latent_channels)})

    @property
    def downsampling(self) -> Downsampling:
        """The downsampling transformer: nearly all of the work."""
        return cast(Downsampling, self.layers["0"])

    def forward(self, patches: Tensor, token_noise: Noise) -> Tensor:
        return self.layers["2"](self.downsampling(patches, token_noise)).transpose(1, 2)


class Decoder(nn.Module):
    """Features (B, C, T) to patches."""

    def __init__(self, config: ResamplingConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"1": nn.Linear(config.latent_channels, config.width), "3": Upsampling(config)})

    def forward(self, feature_BCT: Tensor, token_noise: Noise) -> Tensor:
        return self.layers["3"](self.layers["1"](feature_BCT.transpose(1, 2)), token_noise)


class Autoencoder(nn.Module):
    """SAME with a soft-norm bottleneck, from the model_config.json of a whole model or of an autoencoder alone.

    Always frozen: `encode` and `decode` record no gradients. Audio is float, (B, A, X), at `sample_rate_hz`.
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
        self.sample_rate_hz: int = config["sample_rate"]
        self.audio_channels: int = parts["io_channels"]
        self.latent_channels: int = parts["latent_dim"]
        self.downsampling_ratio: int = parts["downsampling_ratio"]
        self.patch_size: int = patching["config"]["patch_size"]
        self.soft_clip = bool(parts.get("soft_clip", False))
        encoder, decoder = (resampling_config(side, section(where, parts, side)) for side in ("encoder", "decoder"))
        for side in (encoder, decoder):
            if side.stride * self.patch_size != self.downsampling_ratio:
                what = f"patches of {self.patch_size} samples times strides of {side.stride}"
                raise UnsupportedModelConfig(where, f"{what} are not its downsampling_ratio, {self.downsampling_ratio}")
        self.encoder, self.decoder = Encoder(encoder), Decoder(decoder)
        self.bottleneck = SoftNormBottleneck(section(where, parts, "bottleneck"))
        self.silence_frames = max(MIN_SILENCE_FRAMES, encoder.reach_frames)
        self.frame_unit = encoder.pad_unit // encoder.stride

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights; inputs are cast to it."""
        return self.bottleneck.scaling_factor.dtype

    @torch.no_grad()
    def encode(self, audio_BAX: Tensor, token_noise: Noise = None) -> Tensor:
        """Latents (B, C, T) of whole signals, zero-padded to whole patches and to the encoder's attention chunk.

        T is ceil(X / downsampling_ratio), rounded up to whole chunks where attention is chunked.

        Args:
            token_noise: noise of the learned tokens, off by default; a tensor must have shape (B * T, 1, W).
        """
        return self.bottleneck.encode(self.encoder(self.patched(audio_BAX.to(self.dtype)), token_noise))

    @torch.no_grad()
    def decode(self, latents_BCT: Tensor, noise: DecodeNoise = NO_NOISE) -> Tensor:
        """Audio (B, A, X). X is T * downsampling_ratio, rounded up to whole chunks where attention is chunked.

        Noise tensors must have the shapes (B, C, T) and (B * T', patches per frame, W), where T' is T after rounding.
        """
        feature_BCT = self.bottleneck.decode(latents_BCT.to(self.dtype), noise.bottleneck)
        audio_BAX = self.unpatched(self.decoder(feature_BCT, noise.tokens))
        return audio_BAX.tanh() if self.soft_clip else audio_BAX

    def patched(self, audio_BAX: Tensor) -> Tensor:
        """Patches of the signal, channel-major; the last is padded with zeros."""
        audio_BAX = F.pad(audio_BAX, (0, -audio_BAX.shape[-1] % self.patch_size))
        return audio_BAX.unflatten(-1, (-1, self.patch_size)).transpose(2, 3).flatten(1, 2)

    def unpatched(self, patches: Tensor) -> Tensor:
        """The inverse of `patched`."""
        return patches.unflatten(1, (self.audio_channels, self.patch_size)).transpose(2, 3).flatten(2)

    def encode_chunked(
        self,
        audio_BAX: Tensor,
        chunk_frames: int = CHUNK_FRAMES,
        overlap_frames: int = OVERLAP_FRAMES,
        token_noise: Noise = None,
    ) -> Tensor:
        """Latents of long signals in bounded memory: overlapping chunks, joined by hard cuts.

        T is floor(X / downsampling_ratio); a signal shorter than one chunk is encoded by `encode`.
        """
        ratio, total = self.downsampling_ratio, audio_BAX.shape[-1]
        if total < chunk_frames * ratio:
            return self.encode(audio_BAX, token_noise)
        out_BCT = audio_BAX.new_empty(audio_BAX.shape[0], self.latent_channels, total // ratio, dtype=self.dtype)
        for chunk in chunks(total, ratio, chunk_frames, overlap_frames):
            piece = audio_BAX[..., chunk.start : chunk.start + chunk_frames * ratio]
            _write(out_BCT, self.encode(piece, token_noise), chunk)
        return out_BCT

    def decode_chunked(
        self,
        latents_BCT: Tensor,
        chunk_frames: int = CHUNK_FRAMES,
        overlap_frames: int = OVERLAP_FRAMES,
        noise: DecodeNoise = NO_NOISE,
    ) -> Tensor:
        """Audio of long signals in bounded memory: overlapping chunks, joined by hard cuts.

        X is T * downsampling_ratio; a signal shorter than one chunk is decoded by `decode`.
        """
        ratio, total = self.downsampling_ratio, latents_BCT.shape[-1]
        if total < chunk_frames:
            return self.decode(latents_BCT, noise)
        out_BAX = latents_BCT.new_empty(latents_BCT.shape[0], self.audio_channels, total * ratio, dtype=self.dtype)
        for chunk in chunks(total, 1, chunk_frames, overlap_frames):
            piece = latents_BCT[..., chunk.start : chunk.start + chunk_frames]
            _write(out_BAX, self.decode(piece, noise), chunk, ratio)
        return out_BAX

    def encode_clip(self, audio_AX: Tensor, token_noise: Noise = None) -> Tensor:
        """Latents (C, ceil(X / downsampling_ratio)) of one clip, as if it were followed by endless silence."""
        return self.encode_clips([audio_AX], token_noise=token_noise)[0]

    def encode_clips(
        self, audios: Sequence[Tensor], *, chunk_frames: int | None = None, token_noise: Noise = None
    ) -> list[Tensor]:
        """Latents of several clips (A, X_i), each as `encode_clip` gives them, from one batch; see `encode_batch`."""
        latents_BCT, num_frames = self.encode_batch(audios, chunk_frames=chunk_frames, token_noise=token_noise)
        return [latents_CT[:, :frames] for latents_CT, frames in zip(latents_BCT, num_frames, strict=True)]

    def num_frames(self, num_samples: int) -> int:
        """Latent frames of a clip."""
        return -(-num_samples // self.downsampling_ratio)

    def encode_batch(
        self, audios: Sequence[Tensor], *, chunk_frames: int | None = None, token_noise: Noise = None
    ) -> tuple[Tensor, list[int]]:
        """Latents (B, C, T) of clips (A, X_i), and the number of valid frames of each.

        A clip's latents do not depend on its neighbours or on the padding of the batch: each clip is followed by more
        silence than the encoder's local attention can see across.

        Args:
            chunk_frames: encode in chunks of this many frames, for bounded memory; the same up to rounding.

        Raises:
            ValueError: `chunk_frames` is not above the overlap, or no multiple of the attention chunk.
        """
        ratio = self.downsampling_ratio
        num_frames = [self.num_frames(audio.shape[-1]) for audio in audios]
        total = max(num_frames) + self.silence_frames
        if chunk_frames is not None:
            total = self._whole_chunks(total, chunk_frames)
        padded_BAX = torch.stack([F.pad(audio, (0, total * ratio - audio.shape[-1])) for audio in audios])
        if chunk_frames is None:
            return self.encode(padded_BAX, token_noise), num_frames
        overlap_frames = 2 * self.silence_frames
        return self.encode_chunked(padded_BAX, chunk_frames, overlap_frames, token_noise), num_frames

    def _whole_chunks(self, num_frames: int, chunk_frames: int) -> int:
        """`num_frames` rounded up to whole hops, so that the last chunk ends exactly with the signal."""
        overlap = 2 * self.silence_frames
        if chunk_frames <= overlap or chunk_frames % self.frame_unit:
            rule = f"above {overlap} and a multiple of {self.frame_unit}"
            raise ValueError(f"chunk_frames must be {rule}; got {chunk_frames}")
        hop = chunk_frames - overlap
        return chunk_frames + max(0, -(-(num_frames - chunk_frames) // hop)) * hop


def autoencoder_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The autoencoder's section of the model_config.json of a whole model, or of an autoencoder alone."""
    model = section("model", config, "model")
    if "pretransform" in model and "config" in model["pretransform"] and "encoder" in model["pretransform"]["config"]:
        pretransform = model["pretransform"]
        require("pretransform", pretransform, "type", ("autoencoder",))
        require("pretransform", pretransform, "scale", (1, 1.0), 1.0)
        return section("pretransform", pretransform, "config")
    return model


def _write(out: Tensor, piece: Tensor, chunk: Chunk, unit: int = 1) -> None:
    """Copy the kept frames of a chunk (`unit` entries each) to their place in the result."""
    kept = slice(chunk.kept.start * unit, chunk.kept.stop * unit)
    start = (chunk.destination + chunk.kept.start) * unit
    out[..., start : start + kept.stop - kept.start] = piece[..., kept]
