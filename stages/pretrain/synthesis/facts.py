"""What is known of a synthesised sound: what captions tell and judges ask for. Light: no imports of ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SoundFacts:
    """The facts of one sound; None where a fact does not apply to its family."""

    family: str
    """The class of the sound, such as `pluck` or `drum loop`."""
    seconds: float
    """Where the sound ends, its room included; every later sample is zero."""
    peak: float
    """Largest absolute sample."""
    variant: str | None = None
    """Instrument or kind within the family, such as `harp` or `open`."""
    note: int | None = None
    """MIDI note of the fundamental."""
    key: int | None = None
    """Root of a chord, arpeggio or pad: 0 is C, 11 is B."""
    mode: str | None = None
    """Chord or scale on the root, such as `minor` or `dominant seventh`."""
    tempo_bpm: int | None = None
    direction: str | None = None
    """`rising`, `falling`, `up`, `down` or `up and down`."""
    brightness: float | None = None
    """0 dark to 1 bright."""
    attack_seconds: float | None = None
    decay_seconds: float | None = None
    """Time in which the sound falls by 60 dB."""
    vibrato: float | None = None
    """Depth, 0 none to 1 strong."""
    pan: float = 0.0
    """-1 left to 1 right."""
    width: float = 0.0
    """Stereo width: 0 mono, 1 two uncorrelated channels."""
    room_seconds: float = 0.0
    """Reverberation time (60 dB); 0 is a dry sound."""
