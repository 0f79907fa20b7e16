"""A small discriminator of complex short-time spectra of mid and side, and its losses."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

SIZES = (2048, 512, 128)
CHANNELS = 24
COMPRESSION = 0.6
"""Spectra are divided by their magnitude to this power, so that quiet bins are seen."""

Judged = tuple[list[Tensor], list[Tensor]]
"""Verdicts, one map a resolution, and the features of the layers before."""


class Discriminator(nn.Module):
    """Judges stereo audio (B, 2, X)."""

    def __init__(self) -> None:
        super().__init__()
        for size in SIZES:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)
        self.networks = nn.ModuleList(_layers() for _ in SIZES)

    def forward(self, audio_BAX: Tensor) -> Judged:
        verdicts, features = [], []
        for size, layers in zip(SIZES, self.networks, strict=True):
            with torch.autocast(audio_BAX.device.type, torch.bfloat16, enabled=audio_BAX.is_cuda):
                *hidden, verdict = _through(cast(nn.ModuleList, layers), self._spectrum(audio_BAX, size))
            verdicts.append(verdict.float())
            features += hidden
        return verdicts, features

    def _spectrum(self, audio_BAX: Tensor, size: int) -> Tensor:
        """(B, 4, F, N): real and imaginary parts of mid and of side, compressed."""
        left, right = audio_BAX.float().unbind(dim=1)
        both = torch.stack([(left + right) / 2, (left - right) / 2], dim=1)
        window = cast(Tensor, getattr(self, f"window_{size}"))
        with torch.autocast(audio_BAX.device.type, enabled=False):
            spectrum = torch.stft(both.flatten(0, 1), size, size // 4, window=window, return_complex=True)
            parts = torch.view_as_real(spectrum) * (2 / size)
            magnitude = (parts.square().sum(dim=-1, keepdim=True) + 1e-8).sqrt()
            parts = parts * magnitude**-COMPRESSION
        return parts.unflatten(0, (-1, 2)).permute(0, 1, 4, 2, 3).flatten(1, 2)


def _layers() -> nn.ModuleList:
    def convolution(num_in: int, num_out: int, kernel: tuple[int, int], stride: tuple[int, int]) -> nn.Module:
        padding = (kernel[0] // 2, kernel[1] // 2)
        return weight_norm(nn.Conv2d(num_in, num_out, kernel, stride, padding))

    return nn.ModuleList(
        [
            convolution(4, CHANNELS, (7, 3), (1, 1)),
            convolution(CHANNELS, CHANNELS, (7, 3), (3, 1)),
            convolution(CHANNELS, CHANNELS, (7, 3), (3, 2)),
            convolution(CHANNELS, CHANNELS, (5, 3), (2, 1)),
            convolution(CHANNELS, 1, (3, 3), (1, 1)),
        ]
    )


def _through(layers: nn.ModuleList, x: Tensor) -> list[Tensor]:
    outputs = []
    for number, layer in enumerate(layers):
        x = layer(x)
        if number < len(layers) - 1:
            x = F.leaky_relu(x, 0.2)
        outputs.append(x)
    return outputs


def judging_loss(real: Judged, made: Judged) -> Tensor:
    """Hinge loss of the discriminator."""
    pairs = zip(real[0], made[0], strict=True)
    losses = [F.relu(1 - of_real).mean() + F.relu(1 + of_made).mean() for of_real, of_made in pairs]
    return torch.stack(losses).mean()


def deceiving_loss(made: Judged) -> Tensor:
    """What the decoder minimises: minus the verdict on what it made."""
    return -torch.stack([verdict.mean() for verdict in made[0]]).mean()


def feature_distance(made: Judged, real: Judged) -> Tensor:
    """Mean relative difference of the features."""
    differences = [
        (one.float() - other.float()).abs().mean() / other.float().abs().mean().clamp(min=1e-3)
        for one, other in zip(made[1], real[1], strict=True)
    ]
    return torch.stack(differences).mean()
