"""Words that claim one fact of a sound each. Light: standard library only.

A fact is named only where it is clear: a middling brightness has no word.
"""

from __future__ import annotations

from random import Random

from stages.pretrain.synthesis.facts import SoundFacts

SHARPS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
FLATS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")

DARK_BELOW, BRIGHT_ABOVE = 0.33, 0.67
SHORT_BELOW_SECONDS, LONG_ABOVE_SECONDS = 0.5, 3.0
FAST_BELOW_SECONDS, SLOW_ABOVE_SECONDS = 0.03, 0.3
LOW_BELOW_NOTE, HIGH_ABOVE_NOTE = 50, 76
NARROW_BELOW, WIDE_ABOVE = 0.05, 0.6
CENTRED_BELOW, ASIDE_ABOVE, FAR_ASIDE_ABOVE = 0.1, 0.3, 0.8
SMALL_ROOM_BELOW_SECONDS, HALL_ABOVE_SECONDS = 0.6, 1.2
STRONG_VIBRATO_ABOVE = 0.5

_MODE_NAMES: dict[str, tuple[tuple[str, ...], str]] = {
    "major": (("major", "major chord"), ""),
    "minor": (("minor", "minor chord"), "m"),
    "diminished": (("diminished", "dim"), "dim"),
    "augmented": (("augmented", "aug"), "aug"),
    "suspended second": (("suspended second", "sus2"), "sus2"),
    "suspended fourth": (("suspended fourth", "sus4"), "sus4"),
    "dominant seventh": (("dominant seventh", "seventh"), "7"),
    "major seventh": (("major seventh", "maj7"), "maj7"),
    "minor seventh": (("minor seventh", "min7"), "m7"),
    "open fifth": (("open fifth", "power chord"), "5"),
}


def adjectives(facts: SoundFacts, random: Random) -> list[str]:
    """Words that stand before the noun."""
    found: list[str] = []
    found += _either(facts.brightness, DARK_BELOW, BRIGHT_ABOVE, _DARK, _BRIGHT, random)
    found += _either(facts.decay_seconds, SHORT_BELOW_SECONDS, LONG_ABOVE_SECONDS, _SHORT, _LONG, random)
    found += _either(facts.attack_seconds, FAST_BELOW_SECONDS, SLOW_ABOVE_SECONDS, _SUDDEN, _SLOW, random)
    found += _either(facts.note, LOW_BELOW_NOTE, HIGH_ABOVE_NOTE, _LOW, _HIGH, random)
    if facts.width > WIDE_ABOVE:
        found.append(random.choice(("wide", "wide stereo", "spread")))
    if facts.direction in _DIRECTIONS and facts.family in ("sweep", "engine"):
        found.append(random.choice(_DIRECTIONS[facts.direction]))
    if not facts.room_seconds:
        found.append(random.choice(("dry", "close")))
    return found


_DARK, _BRIGHT = ("dark", "mellow", "soft", "warm", "muted"), ("bright", "sharp", "brilliant", "crisp")
_SHORT, _LONG = ("short", "tight", "damped"), ("long", "ringing", "resonant")
_SUDDEN, _SLOW = ("punchy", "snappy"), ("slow", "swelling")
_LOW, _HIGH = ("low", "deep", "low pitched"), ("high", "high pitched")
_DIRECTIONS = {"rising": ("rising", "upward", "ascending"), "falling": ("falling", "downward", "descending")}


def _either(
    value: float | None, low: float, high: float, below: tuple[str, ...], above: tuple[str, ...], random: Random
) -> list[str]:
    if value is None or low <= value <= high:
        return []
    return [random.choice(below if value < low else above)]


def additions(facts: SoundFacts, random: Random) -> list[str]:
    """Words that stand behind the noun, those of note, key and tempo first."""
    found: list[str] = []
    if facts.note is not None:
        found.append(_note(facts.note, random))
    if facts.key is not None and facts.mode is not None:
        found.append(_chord(facts.key, facts.mode, random))
    if facts.tempo_bpm is not None:
        found.append(
            random.choice(("{} bpm", "{} BPM", "at {} bpm", "tempo {}", "at {} beats per minute")).format(
                facts.tempo_bpm
            )
        )
    if facts.direction is not None and facts.family == "arpeggio":
        found.append(random.choice(_ARPEGGIO_DIRECTIONS[facts.direction]))
    return found + _stereo_and_room(facts, random)


_ARPEGGIO_DIRECTIONS = {
    "up": ("going up", "ascending", "upward"),
    "down": ("going down", "descending", "downward"),
    "up and down": ("up and down", "going up and down"),
}


def _stereo_and_room(facts: SoundFacts, random: Random) -> list[str]:
    found: list[str] = []
    if facts.vibrato is not None and facts.vibrato > STRONG_VIBRATO_ABOVE:
        found.append(random.choice(("with vibrato", "vibrato")))
    elif facts.vibrato == 0:
        found.append(random.choice(("without vibrato", "straight tone")))
    side = "left" if facts.pan < 0 else "right"
    if abs(facts.pan) > FAR_ASIDE_ABOVE:
        found.append(random.choice((f"hard {side}", f"panned hard {side}", f"far {side}")))
    elif abs(facts.pan) > ASIDE_ABOVE:
        found.append(random.choice((f"panned {side}", f"on the {side}", f"to the {side}")))
    elif abs(facts.pan) < CENTRED_BELOW and facts.width < NARROW_BELOW and not facts.room_seconds:
        found.append(random.choice(("mono", "centered")))
    if facts.room_seconds > HALL_ABOVE_SECONDS:
        found.append(random.choice(("in a large hall", "long reverb", "reverberant hall", "with a lot of reverb")))
    elif 0 < facts.room_seconds < SMALL_ROOM_BELOW_SECONDS:
        found.append(random.choice(("in a small room", "short reverb", "small room")))
    elif facts.room_seconds:
        found.append(random.choice(("in a room", "with reverb", "some reverb")))
    return found


def note_name(note: int, names: tuple[str, ...] = SHARPS) -> str:
    """Scientific pitch: MIDI note 60 is C4."""
    return f"{names[note % 12]}{note // 12 - 1}"


def _spelled(name: str, random: Random) -> str:
    """A name as it is, or with its accidental written out."""
    if random.random() < 0.75:
        return name
    return name.replace("#", " sharp").replace("b", " flat")


def _note(note: int, random: Random) -> str:
    names = random.choice((SHARPS, SHARPS, FLATS))
    full = note_name(note, names)
    bare = _spelled(names[note % 12], random)
    return random.choice((full, full, f"note {full}", f"in {bare}", f"playing {full}", f"pitch {full}"))


def _chord(key: int, mode: str, random: Random) -> str:
    root = random.choice((SHARPS, SHARPS, FLATS))[key]
    long_names, suffix = _MODE_NAMES[mode]
    written = f"{_spelled(root, random)} {random.choice(long_names)}"
    return random.choice((written, written, f"in {written}", f"{root}{suffix}" if suffix else written))
