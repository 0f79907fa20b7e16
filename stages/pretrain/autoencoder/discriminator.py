"""A small discriminator of complex short-time spectra of mid and side, and its losses."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

SIZES = (2048, 512, 128)
CROP = 16384
"""Samples judged of each clip, at a random place: 0.37 s."""
CHANNELS = (32, 48)
"""Of the first layer, and of the later ones."""
SLOPE = 0.2
"""Of the layers' rectifiers, below zero."""
COMPRESSION = 0.6
"""Spectra are divided by their magnitude to this power, so that quiet bins are seen."""
GAIN = 8.0
"""Brings the compressed spectra of common sounds to about unit size."""

Judged = tuple[list[Tensor], list[Tensor]]
"""Verdicts, one map a resolution, and the features of the layers before."""


def random_crops(*audios_BAX: Tensor) -> list[Tensor]:
    """The same random part of each clip, `CROP` samples long at most, of several batches."""
    batch, channels, num_samples = audios_BAX[0].shape
    length, device = min(CROP, num_samples), audios_BAX[0].device
    start = (torch.rand(batch, 1, 1, device=device) * (num_samples - length + 1)).long()
    place = (start + torch.arange(length, device=device)).expand(-1, channels, -1)
    return [audio_BAX.gather(2, place) for audio_BAX in audios_BAX]


class Discriminator(nn.Module):
    """Judges stereo audio (B, 2, X)."""

    def __init__(self) -> None:
        super().__init__()
        for size in SIZES:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)
        self.networks = nn.ModuleList(_layers(size) for size in SIZES)

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
            parts = parts * (GAIN * magnitude**-COMPRESSION)
        parted = parts.unflatten(0, (-1, 2)).permute(0, 1, 4, 2, 3).flatten(1, 2)
        # Convolutions in bfloat16 are several times faster with their channels last.
        return parted.contiguous(memory_format=torch.channels_last)


def _layers(size: int) -> nn.ModuleList:
    """Convolutions over frequency and time; the longer of the two is reduced first."""

    def convolution(num_in: int, num_out: int, along: int, across: int, stride: tuple[int, int]) -> nn.Module:
        # Long windows have many bins and few frames, short ones the reverse.
        kernel, steps = ((along, across), stride) if size >= 512 else ((across, along), stride[::-1])
        padding = (kernel[0] // 2, kernel[1] // 2)
        layer = nn.Conv2d(num_in, num_out, kernel, steps, padding)
        nn.init.kaiming_normal_(layer.weight, SLOPE)
        return weight_norm(layer)

    first, later = CHANNELS
    return nn.ModuleList(
        [
            convolution(4, first, 7, 3, (2, 1)),
            convolution(first, later, 7, 3, (3, 1)),
            convolution(later, later, 5, 3, (2, 2)),
            convolution(later, later, 3, 3, (1, 1)),
            convolution(later, 1, 3, 3, (1, 1)),
        ]
    )


def _through(layers: nn.ModuleList, x: Tensor) -> list[Tensor]:
    outputs = []
    for number, layer in enumerate(layers):
        x = layer(x)
        if number < len(layers) - 1:
            x = F.leaky_relu(x, SLOPE)
        outputs.append(x)
    return outputs


def judging_loss(judged: Judged) -> Tensor:
    """Hinge loss of the discriminator; the first half of the batch is real, the second was made."""
    pairs = [verdict.chunk(2) for verdict in judged[0]]
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
