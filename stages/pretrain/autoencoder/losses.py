"""What the autoencoder's training minimises: spectral, waveform and latent terms.

Every signal term is a mean over two orthogonal channels, by turns left and right or mid and side, each measured against
its own level: a quiet side channel counts as much as a loud mid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.pretrain.autoencoder.architecture import SAMPLE_RATE_HZ
from stages.pretrain.autoencoder.spectra import RESOLUTIONS, SMALLEST_POWER, Spectra

QUIET_POWER = 1e-6
"""Mean square, -60 dB: a channel below it counts less."""
SIDE_FLOOR = 0.003
"""A channel counts at least as loud as this share of the other's power."""
TILT_HZ = 1000.0
"""Log distances weigh a bin by 1/2 + 1/2 of 1 / (f + this), normalised: between equal bins and equal octaves."""
BAND_HZ = 2000.0
"""The waveform term fades out above this."""
AREA = (4, 8)
"""Mel bands and frames of an area whose level is compared."""


class Distances(NamedTuple):
    """Terms of the distance between audio made and audio wanted; all zero if they are equal."""

    log_stft: Tensor
    """Mean difference of natural log magnitudes."""
    log_mel: Tensor
    convergence: Tensor
    """Norm of the difference of magnitudes over that of those wanted."""
    waveform: Tensor
    """Noise-to-signal power below about `BAND_HZ`."""
    level: Tensor
    """Mean difference of the natural log levels of areas, each of neighbouring mel bands and of several frames.

    Noise that is not given back exactly is given back too quietly by the other terms; an area's level does not depend
    on the noise's course.
    """


class AudioDistances(nn.Module):
    """Computes `Distances` of stereo audio (B, 2, X)."""

    def __init__(self, floor: float, *, compiled: bool = False) -> None:
        """`floor`: magnitude below which nothing is distinguished, added to every magnitude before its logarithm."""
        super().__init__()
        self.floor = floor
        self.resolutions = nn.ModuleList(Spectra(size, bands) for size, bands in RESOLUTIONS)
        self.compare = torch.compile(compare_powers, dynamic=False) if compiled else compare_powers

    def forward(self, made_BAX: Tensor, wanted_BAX: Tensor) -> Distances:
        turned = by_turns(made_BAX.shape[0], made_BAX.device)
        made, wanted = turned @ made_BAX, turned @ wanted_BAX
        terms = []
        for spectra in self.resolutions:
            assert isinstance(spectra, Spectra)
            powers = spectra.powers(made), spectra.powers(wanted)
            terms.append(torch.stack(self.compare(*powers, spectra.bands, self.floor)))
        log_stft, log_mel, convergence, level = torch.stack(terms).mean(dim=0).unbind()
        return Distances(log_stft, log_mel, convergence, waveform_distance(made, wanted), level)


def by_turns(batch: int, device: torch.device) -> Tensor:
    """(B, 2, 2) matrices that leave left and right as they are, or turn them into mid and side, at random."""
    # Arithmetic only: a table of constants would be copied from the host, which a CUDA graph cannot capture.
    turned = (torch.rand(batch, device=device) < 0.5).float()
    cross = turned * 2**-0.5
    rows = [torch.stack([1 - turned + cross, cross], dim=-1), torch.stack([cross, 1 - turned - cross], dim=-1)]
    return torch.stack(rows, dim=1)


def compare_powers(
    made_BAFN: Tensor, wanted_BAFN: Tensor, bands: Tensor, floor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-STFT, log-mel, convergence and level terms of power spectra."""
    made, wanted = ((power + SMALLEST_POWER).sqrt() for power in (made_BAFN, wanted_BAFN))
    hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, made.shape[-2], device=made.device)[:, None]
    tilt = 1 / (hz + TILT_HZ)
    weight = 0.5 + 0.5 * tilt / tilt.mean()
    log_stft = ((made + floor).log() - (wanted + floor).log()).abs().mul(weight).mean()
    made_mel, wanted_mel = (bands @ power for power in (made_BAFN, wanted_BAFN))
    log_mel = _log_distance(made_mel, wanted_mel, floor)
    level = _log_distance(_areas(made_mel), _areas(wanted_mel), floor)
    error, total = (made - wanted).square().sum(dim=(-2, -1)), wanted.square().sum(dim=(-2, -1))
    quiet = QUIET_POWER * wanted.shape[-1]
    ratio = (error + SMALLEST_POWER).sqrt() / (total + SIDE_FLOOR * total.flip(1) + quiet).sqrt()
    return log_stft, log_mel, ratio.mean(), level


def _log_distance(made: Tensor, wanted: Tensor, floor: float) -> Tensor:
    """Mean difference of the natural log magnitudes of powers."""
    made, wanted = ((power + SMALLEST_POWER).sqrt() + floor for power in (made, wanted))
    return (made.log() - wanted.log()).abs().mean()


def _areas(powers: Tensor) -> Tensor:
    """Mean powers (..., bands / 4, N / 8) of areas; what is left over at the ends is dropped."""
    bands, frames = (length // size * size for length, size in zip(powers.shape[-2:], AREA, strict=True))
    whole = powers[..., :bands, :frames]
    return whole.unflatten(-1, (-1, AREA[1])).unflatten(-3, (-1, AREA[0])).mean(dim=(-3, -1))


def waveform_distance(made_BAX: Tensor, wanted_BAX: Tensor) -> Tensor:
    """Noise-to-signal power of the low band, mean over channels; from spectra of the whole signal, by Parseval."""
    num_samples = wanted_BAX.shape[-1]
    hz = torch.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ, device=wanted_BAX.device)
    weight = 2 / num_samples**2 / (1 + (hz / BAND_HZ) ** 4)
    error, level = (
        (torch.view_as_real(torch.fft.rfft(signal)).square().sum(dim=-1) * weight).sum(dim=-1)
        for signal in (made_BAX - wanted_BAX, wanted_BAX)
    )
    return (error / (level + SIDE_FLOOR * level.flip(1) + 10 * QUIET_POWER)).mean()


def latent_divergence(latents_BCT: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each channel, as a normal distribution over the batch, from the unit normal."""
    mean, variance = latents_BCT.mean(dim=(0, 2)), latents_BCT.var(dim=(0, 2))
    return 0.5 * (mean.square() + variance - 1 - torch.log(variance + 1e-4)).mean()
