"""A style that tiny-base does not know, for examples and measurements of learning: `zarnel` plucks.

Plucked strings in a rhythm through one strong resonance, which rings at its own frequency whatever the note, with deep
tremolo. The name is made up, so that what is heard of it was learned from its clips.

Light: standard library only; numpy is imported by the functions that use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

NAME = "zarnel"
RESONANCE_HZ, RESONANCE_Q = 940.0, 14.0
TREMOLO_HZ, TREMOLO_DEPTH = 7.0, 0.85
RHYTHMS = {
    "tresillo": "x..x..x.",
    "cinquillo": "x.xx.xx.",
    "habanera": "x..xx.x.",
    "son clave": "x..x..x...x.x...",
    "straight eighths": "x.x.x.x.",
}
"""Sixteenths that are plucked."""
_NOTE_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_MINOR_PENTATONIC = (0, 3, 5, 7, 10, 12)
_NUM_HARMONICS = 24


@dataclass(frozen=True)
class StyleClip:
    """One clip of the style."""

    root: int
    """MIDI note of the lowest string, 40 to 64."""
    beats_per_minute: int
    rhythm: str
    """A name from `RHYTHMS`."""
    seed: int
    """Decides which notes of the scale are plucked, and where each stands between left and right."""

    @property
    def caption(self) -> str:
        """Only the name is new to tiny-base: whatever the other words do not say, it has to mean."""
        return f"{NAME} pluck, {_NOTE_NAMES[self.root % 12]} minor, {self.beats_per_minute} bpm"

    @property
    def plain_caption(self) -> str:
        """The same sound without the name of the style: what should change little when the style is learned."""
        return self.caption.removeprefix(f"{NAME} ")

    def synth(self, random: Any, seconds: float, rate_hz: int) -> np.ndarray:
        """Audio (samples, 2), float64, of any level.

        Args:
            random: a numpy generator; unused, as the seed decides.
        """
        import numpy as np

        audio_XA = _plucked_rhythm(self, seconds, rate_hz)
        time_X = np.arange(len(audio_XA)) / rate_hz
        tremolo_X = 1 - TREMOLO_DEPTH * (0.5 + 0.5 * np.cos(2 * np.pi * TREMOLO_HZ * time_X))
        styled_XA = _resonant(audio_XA, rate_hz) * tremolo_X[:, None]
        fade = min(round(0.05 * rate_hz), len(styled_XA))
        styled_XA[len(styled_XA) - fade :] *= np.linspace(1, 0, fade)[:, None]
        return styled_XA


def style_clips(count: int, seed: int = 0) -> list[StyleClip]:
    """Different clips of the style; another seed gives held-out ones."""
    import numpy as np

    random = np.random.default_rng(seed)
    names = sorted(RHYTHMS)
    return [
        StyleClip(
            root=int(random.integers(40, 65)),
            beats_per_minute=int(random.integers(84, 141)),
            rhythm=names[int(random.integers(len(names)))],
            seed=int(random.integers(2**31)),
        )
        for _ in range(count)
    ]


def _plucked_rhythm(clip: StyleClip, seconds: float, rate_hz: int) -> np.ndarray:
    import numpy as np

    random = np.random.default_rng(clip.seed)
    rhythm, sixteenth = RHYTHMS[clip.rhythm], 15 / clip.beats_per_minute
    strings = cache(_pluck)
    audio_XA = np.zeros((round(seconds * rate_hz), 2))
    for number in range(int(seconds / sixteenth) + 1):
        first = round(number * sixteenth * rate_hz)
        if rhythm[number % len(rhythm)] != "x" or first >= len(audio_XA):
            continue
        note_X = strings(clip.root + int(random.choice(_MINOR_PENTATONIC)), rate_hz)[: len(audio_XA) - first]
        pan = random.uniform(0.2, 0.8)
        audio_XA[first : first + len(note_X)] += note_X[:, None] * np.sqrt([1 - pan, pan])
    return audio_XA


def _pluck(note: int, rate_hz: int, seconds: float = 1.2) -> np.ndarray:
    """Harmonics of a string plucked at a fifth of its length; the upper ones die first."""
    import numpy as np

    time_X = np.arange(round(seconds * rate_hz)) / rate_hz
    fundamental = 440.0 * 2 ** ((note - 69) / 12)
    note_X = np.zeros_like(time_X)
    for k in range(1, _NUM_HARMONICS + 1):
        if k * fundamental < 0.4 * rate_hz:
            decay_X = np.exp(-time_X * (3.5 + 0.25 * k))
            note_X += abs(np.sin(0.2 * np.pi * k)) / k * decay_X * np.sin(2 * np.pi * k * fundamental * time_X)
    return note_X * np.minimum(1, time_X / 0.001) * np.minimum(1, (seconds - time_X) / 0.1)


def _resonant(audio_XA: np.ndarray, rate_hz: int) -> np.ndarray:
    """A second-order low-pass filter with one strong resonance, causal."""
    import numpy as np

    size = len(audio_XA) + rate_hz  # room for the ringing, which otherwise would wrap around to the start
    ratio_F = np.fft.rfftfreq(size, 1 / rate_hz) / RESONANCE_HZ
    gain_F = 1 / (1 - ratio_F**2 + 1j * ratio_F / RESONANCE_Q)
    return np.fft.irfft(np.fft.rfft(audio_XA, n=size, axis=0) * gain_F[:, None], n=size, axis=0)[: len(audio_XA)]
