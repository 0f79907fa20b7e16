"""Distance between two sets of clips, such as generated ones and held-out ones of a style: 0 if they are alike.

Each clip becomes one vector of V values, in one of two ways, and the sets of vectors are compared by their energy
distance. Neither way holds anything that was trained: what a base model has learned can favour no side.

spectral    mean log-mel spectrum, and how deeply each group of bands swings at which rate (modulation spectrum)
embedding   two layers of random filters over the log-mel spectrum, averaged over time: a random convolutional network
            tells sounds apart almost as well as a trained one (Pons and Serra 2019, arXiv:1805.00237)

Letters beside those of the house: Q mel bands, G mixtures of them, V values of a clip's vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.judge.log_mel import FRAMES_PER_SECOND, NUM_BANDS, decibels, mel_powers

BAND_GROUPS = 12
SWING_EDGES_HZ = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.3, 16.0, 22.6)
"""Half octaves of modulation."""
SMALLEST_SWING = 0.03
"""Of the level: swings below it count as none."""
SILENT_ENVELOPE = 1e-3
"""-60 dB; in bands of that level nothing swings."""
NUM_MIXTURES, MOVEMENTS_EACH = 64, 4
MOVEMENT_FRAMES = (16, 32)
"""Lengths of the random filters over time: 0.19 and 0.37 s."""
SEED = 180_500_237


def spectral_vectors(power_BQT: Tensor) -> Tensor:
    """(B, V): levels in dB, then depths of modulation in dB."""
    level_BQ = decibels(power_BQT).mean(dim=2)
    return torch.cat([level_BQ, _swings(power_BQT).flatten(1)], dim=1)


def _swings(power_BQT: Tensor) -> Tensor:
    """(B, BAND_GROUPS, rates): magnitude of the envelope's swing at each rate, of the envelope's mean, in dB."""
    envelope = power_BQT.unflatten(1, (BAND_GROUPS, NUM_BANDS // BAND_GROUPS)).mean(dim=2).sqrt()
    mean = envelope.mean(dim=2, keepdim=True)
    num_frames = envelope.shape[2]
    window_T = torch.hann_window(num_frames, device=envelope.device)
    spectrum = torch.fft.rfft((envelope - mean) * window_T).abs() * (4 / num_frames)
    rate_hz = torch.fft.rfftfreq(num_frames, 1 / FRAMES_PER_SECOND, device=envelope.device)
    inside = [(rate_hz >= low) & (rate_hz < high) for low, high in pairwise(SWING_EDGES_HZ)]
    depth = torch.stack([spectrum[..., rates].square().sum(dim=2).sqrt() for rates in inside], dim=2)
    return 20 * torch.log10(depth / (mean + SILENT_ENVELOPE) + SMALLEST_SWING)


def embedding_vectors(power_BQT: Tensor) -> Tensor:
    """(B, V): mean and deviation over time of what random mixtures of bands find, and how strongly that moves.

    A second layer hears each mixture's movement through random filters over time: without it a tremolo counts for
    nothing beside differences of the mean spectrum.
    """
    level_BQT = decibels(power_BQT)
    level_BQT = level_BQT - level_BQT.mean(dim=(1, 2), keepdim=True)
    mixtures, movements = _random_filters()
    heard_BGT = F.conv1d(level_BQT, mixtures.to(level_BQT)).relu()
    moving_BGT = heard_BGT - heard_BGT.mean(dim=2, keepdim=True)
    moved = [F.conv1d(moving_BGT, one.to(level_BQT), groups=NUM_MIXTURES).relu().mean(dim=2) for one in movements]
    return torch.cat([heard_BGT.mean(dim=2), heard_BGT.std(dim=2), *moved], dim=1)


@cache
def _random_filters() -> tuple[Tensor, list[Tensor]]:
    """Mixtures of bands, and filters over time for each mixture, drawn on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(SEED)
    mixtures = torch.randn(NUM_MIXTURES, NUM_BANDS, 1, generator=generator) / math.sqrt(NUM_BANDS)
    movements = []
    for frames in MOVEMENT_FRAMES:
        drawn = torch.randn(NUM_MIXTURES * MOVEMENTS_EACH, 1, frames, generator=generator) * torch.hann_window(frames)
        drawn = drawn - drawn.mean(dim=2, keepdim=True)
        movements.append(drawn / drawn.norm(dim=2, keepdim=True))
    return mixtures, movements


_WAYS: Mapping[str, Callable[[Tensor], Tensor]] = {"spectral": spectral_vectors, "embedding": embedding_vectors}
WAYS = tuple(_WAYS)


def clip_vectors(audio_BAX: Tensor) -> dict[str, Tensor]:
    """(B, V) for each of `WAYS`, of audio at 44.1 kHz of any level."""
    power_BQT = mel_powers(audio_BAX)
    return {way: vectors(power_BQT) for way, vectors in _WAYS.items()}


def style_distances(made_BAX: Tensor, wanted_BAX: Tensor) -> dict[str, float]:
    """Distance of generated clips to clips of a style, for each of `WAYS`.

    The root of the energy distance: a metric, and proportional to how far the clips' vectors lie apart. By chance it is
    not quite 0 between clips of one style: `chance_distances` says how large it is then.

    Args:
        made_BAX, wanted_BAX: (clips, channels, samples) at 44.1 kHz, two clips at least, of one length.
    """
    made, wanted = clip_vectors(made_BAX), clip_vectors(wanted_BAX)
    return {way: max(energy_distance(made[way], wanted[way]), 0.0) ** 0.5 for way in WAYS}


def chance_distances(wanted_BAX: Tensor, splits: int = 20) -> dict[str, float]:
    """What `style_distances` finds between random halves of one set, about: its noise floor at that number of clips."""
    generator, half = torch.Generator().manual_seed(SEED), len(wanted_BAX) // 2
    orders = [torch.randperm(len(wanted_BAX), generator=generator) for _ in range(splits)]
    vectors = clip_vectors(wanted_BAX.cpu())
    return {
        way: math.sqrt(sum(abs(_between_halves(vectors[way][order], half)) for order in orders) / splits)
        for way in WAYS
    }


def _between_halves(vectors_BV: Tensor, half: int) -> float:
    return energy_distance(vectors_BV[:half], vectors_BV[half:])


def remoteness(made_BAX: Tensor, wanted_BAX: Tensor) -> dict[str, float]:
    """Mean distance of clips, be it one, from those of a style, in that of the style's clips from each other.

    1 for a clip of the style. Unlike `style_distances` it says nothing of variety: the most typical clip over and over
    is below 1.
    """
    made, wanted = clip_vectors(made_BAX), clip_vectors(wanted_BAX)
    return {way: float(_across(made[way], wanted[way]) / _within(wanted[way])) for way in WAYS}


def energy_distance(made_BV: Tensor, wanted_BV: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| (Székely and Rizzo 2013), |x| being the root mean square of x's values.

    Unbiased: 0 in the mean if both come from one distribution, and so below 0 at times.
    """
    return float(2 * _across(made_BV, wanted_BV) - _within(made_BV) - _within(wanted_BV))


def _across(one_BV: Tensor, other_BV: Tensor) -> Tensor:
    """Mean distance of a vector of one set from a vector of the other."""
    return torch.cdist(one_BV.cpu().double(), other_BV.cpu().double()).mean() / math.sqrt(one_BV.shape[1])


def _within(vectors_BV: Tensor) -> Tensor:
    """Mean distance of two different vectors of a set."""
    count = len(vectors_BV)
    return _across(vectors_BV, vectors_BV) * (count / (count - 1))
