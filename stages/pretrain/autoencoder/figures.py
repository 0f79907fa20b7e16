"""Figures of reconstructed audio: log-STFT and log-mel distance, SI-SDR and the side channel, with baselines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.pretrain.autoencoder.architecture import SAMPLE_RATE_HZ
from stages.pretrain.autoencoder.spectra import RESOLUTIONS, Spectra

FLOOR = 1e-4
"""-80 dB, added to magnitudes."""

Rows = dict[str, dict[str, float]]
"""Figures by family, with `all`."""


def log_distances(made_BAX: Tensor, wanted_BAX: Tensor, seconds_B: Tensor) -> tuple[Tensor, Tensor]:
    """Mean difference in dB of STFT magnitudes and of mel magnitudes, per clip, over its sounding part."""
    stft, mel = [], []
    for size, num_bands in RESOLUTIONS:
        spectra = Spectra(size, num_bands).to(wanted_BAX.device)
        made, wanted = spectra.powers(made_BAX), spectra.powers(wanted_BAX)
        times = torch.arange(wanted.shape[-1], device=wanted.device) * (size // 4) / SAMPLE_RATE_HZ
        sounding = (times[None] < seconds_B[:, None]).float()
        stft.append(_over(decibels(made, wanted), sounding))
        mel.append(_over(decibels(spectra.bands @ made, spectra.bands @ wanted), sounding))
    return torch.stack(stft).mean(dim=0), torch.stack(mel).mean(dim=0)


def decibels(made: Tensor, wanted: Tensor) -> Tensor:
    """Absolute difference in dB of two powers."""
    return 20 * torch.log10((made.sqrt() + FLOOR) / (wanted.sqrt() + FLOOR)).abs()


def _over(difference_BAFN: Tensor, sounding_BN: Tensor) -> Tensor:
    per_frame = difference_BAFN.mean(dim=(1, 2))
    return (per_frame * sounding_BN).sum(dim=-1) / sounding_BN.sum(dim=-1).clamp(min=1)


def si_sdr(made_BAX: Tensor, wanted_BAX: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, per clip (Le Roux et al. 2018, arXiv:1811.02508)."""
    made, wanted = made_BAX.flatten(1).double(), wanted_BAX.flatten(1).double()
    scale = (made * wanted).sum(dim=1, keepdim=True) / wanted.square().sum(dim=1, keepdim=True).clamp(min=1e-9)
    target, error = (scale * wanted).square().sum(dim=1), (made - scale * wanted).square().sum(dim=1)
    return (10 * torch.log10((target / error.clamp(min=1e-12)).clamp(min=1e-9))).float()


def level_difference(made_BAX: Tensor, wanted_BAX: Tensor) -> Tensor:
    """Level made minus level wanted in dB, per clip."""
    made, wanted = (signal.square().mean(dim=(1, 2)) + 1e-9 for signal in (made_BAX, wanted_BAX))
    return 10 * torch.log10(made / wanted)


def side_share(audio_BAX: Tensor) -> Tensor:
    """Root of side power over mid power, per clip."""
    left, right = audio_BAX.unbind(dim=1)
    mid, side = ((left + right).square().mean(dim=1), (left - right).square().mean(dim=1))
    return (side / mid.clamp(min=1e-9)).sqrt().clamp(max=10)


def figures(made_BAX: Tensor, wanted_BAX: Tensor, seconds_B: Tensor, families: Sequence[str] = ()) -> Rows:
    """Figures of all clips and of each family."""
    stft, mel = log_distances(made_BAX, wanted_BAX, seconds_B)
    columns = {
        "log_stft_db": stft,
        "log_mel_db": mel,
        "si_sdr_db": si_sdr(made_BAX, wanted_BAX),
        "level_db": level_difference(made_BAX, wanted_BAX),
        "side_wanted": side_share(wanted_BAX),
        "side_made": side_share(made_BAX),
    }
    rows = {"all": _row(columns, list(range(len(wanted_BAX))))}
    for family in sorted(set(families)):
        rows[family] = _row(columns, [clip for clip, name in enumerate(families) if name == family])
    return rows


def _row(columns: dict[str, Tensor], clips: list[int]) -> dict[str, float]:
    return {name: round(float(values[clips].mean()), 3) for name, values in columns.items()}


def baselines(wanted_BAX: Tensor, seconds_B: Tensor, families: Sequence[str] = ()) -> dict[str, Rows]:
    """Figures of silence, of two low-passed originals, and of each clip's mean spectrum."""
    return {
        "silence": figures(torch.zeros_like(wanted_BAX), wanted_BAX, seconds_B, families),
        "low-pass 4 kHz": figures(low_passed(wanted_BAX, 4000), wanted_BAX, seconds_B, families),
        "low-pass 1 kHz": figures(low_passed(wanted_BAX, 1000), wanted_BAX, seconds_B, families),
        "mean spectrum": {"all": mean_spectrum(wanted_BAX, seconds_B)},
    }


def low_passed(audio_BAX: Tensor, highest_hz: float) -> Tensor:
    """Audio without anything above a frequency."""
    spectrum = torch.fft.rfft(audio_BAX)
    hz = torch.fft.rfftfreq(audio_BAX.shape[-1], 1 / SAMPLE_RATE_HZ, device=audio_BAX.device)
    return torch.fft.irfft(spectrum * (hz < highest_hz), n=audio_BAX.shape[-1])


def mean_spectrum(wanted_BAX: Tensor, seconds_B: Tensor) -> dict[str, float]:
    """Distances of each clip from its own mean magnitudes, the best that does not change in time."""
    stft, mel = [], []
    for size, num_bands in RESOLUTIONS:
        spectra = Spectra(size, num_bands).to(wanted_BAX.device)
        wanted = spectra.powers(wanted_BAX)
        times = torch.arange(wanted.shape[-1], device=wanted.device) * (size // 4) / SAMPLE_RATE_HZ
        sounding = (times[None] < seconds_B[:, None]).float()
        weights = (sounding / sounding.sum(dim=-1, keepdim=True))[:, None, None]
        mean = (wanted.sqrt() * weights).sum(dim=-1, keepdim=True).square().expand_as(wanted)
        stft.append(_over(decibels(mean, wanted), sounding).mean())
        mel.append(_over(decibels(spectra.bands @ mean, spectra.bands @ wanted), sounding).mean())
    return {"log_stft_db": round(float(sum(stft)) / 3, 3), "log_mel_db": round(float(sum(mel)) / 3, 3)}
