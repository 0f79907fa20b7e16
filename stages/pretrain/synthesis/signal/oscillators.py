"""Band-limited tones: sums of partials whose phases are exact.

Phases are integers, 2**32 to a turn, that wrap around: they do not lose precision in long sounds, and k times a phase
is the phase of the k-th harmonic. K partials; other letters as everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stages.pretrain.synthesis.signal.context import SAMPLE_RATE_HZ

_TURN = 2**32
_RADIANS = 2 * math.pi / _TURN
_FULL_BELOW_HZ, _SILENT_ABOVE_HZ = 15_000.0, 19_000.0


def hz(note: Tensor) -> Tensor:
    """Frequency of MIDI notes, fractions included."""
    return 440.0 * torch.exp2((note - 69.0) / 12.0)


def audible(frequency_hz: Tensor) -> Tensor:
    """Gain that keeps partials below the Nyquist frequency: 1, falling to 0 between 15 and 19 kHz."""
    return ((_SILENT_ABOVE_HZ - frequency_hz) / (_SILENT_ABOVE_HZ - _FULL_BELOW_HZ)).clamp(0, 1)


def partials(
    frequency_hz_BK: Tensor,
    gain_BK: Tensor,
    decay_rate_BK: Tensor | None,
    time_X: Tensor,
    phase_turns_BK: Tensor | None = None,
) -> Tensor:
    """Sum over K of gain exp(-rate t) sin(2 pi (f t + phase)), (B, X)."""
    num_clips, num_partials = frequency_hz_BK.shape
    index_X = torch.arange(time_X.numel(), device=time_X.device, dtype=torch.int32)
    step_BK = _wrapped(frequency_hz_BK.double() / SAMPLE_RATE_HZ)
    start_BK = torch.zeros_like(step_BK) if phase_turns_BK is None else _wrapped(phase_turns_BK.double())
    gain_BK = gain_BK * audible(frequency_hz_BK)
    sum_BX = torch.zeros(num_clips, time_X.numel(), device=time_X.device)
    for k in range(num_partials):
        wave_BX = sine(index_X * step_BK[:, k, None] + start_BK[:, k, None])
        if decay_rate_BK is not None:
            wave_BX.mul_(torch.exp(-time_X * decay_rate_BK[:, k, None]))
        sum_BX.addcmul_(wave_BX, gain_BK[:, k, None])
    return sum_BX


def sine(phase: Tensor) -> Tensor:
    """Sine of an integer phase."""
    return phase.float().mul_(_RADIANS).sin_()


def moving_phase(frequency_hz_BX: Tensor) -> Tensor:
    """Integer phase of a tone whose frequency moves, (B, X) int32, beginning at 0."""
    step_BX = (frequency_hz_BX.double() * (_TURN / SAMPLE_RATE_HZ)).round().long()
    return _to_int32(step_BX.cumsum(dim=1) - step_BX)


def harmonics(
    phase_BX: Tensor, frequency_hz: Tensor, count: int, gain: Callable[[int], Tensor | float], skip_even: bool = False
) -> Tensor:
    """Sum over k = 1 to count of gain(k) sin(k phase), (B, X), harmonics above the audible range left out.

    Args:
        frequency_hz: of the fundamental, (B, 1) or (B, X).
        gain: (B, 1) or (B, X) of each harmonic.
    """
    sum_BX = torch.zeros(phase_BX.shape, device=phase_BX.device)
    for k in range(1, count + 1, 2 if skip_even else 1):
        sum_BX.addcmul_(sine(phase_BX * k), (gain(k) * audible(k * frequency_hz)).expand_as(sum_BX))
    return sum_BX


def _wrapped(turns: Tensor) -> Tensor:
    return _to_int32((turns * _TURN).round().long())


def _to_int32(value: Tensor) -> Tensor:
    return ((value + _TURN // 2) % _TURN - _TURN // 2).int()
