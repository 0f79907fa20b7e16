"""Writes the small example dataset: clips synthesised here, a caption beside each, as one zip.

The clips come in the formats, rates and lengths real collections come in, so the example also shows what ingest does.
Light at import; arrays are loaded by the function that needs them. Suffixes: N samples, C channels (two).

Sources: Karplus and Strong (1983) for the plucked strings; Chowning (1973) for the bells.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.atomic_files import written_aside
from cache.errors import WriteFailed
from pipeline.errors import PipelineError
from stages.ingest.integrity.riff_ogg_flac import ogg_checksum, ogg_pages

if TYPE_CHECKING:
    import numpy as np

_DATE = (2024, 1, 1, 0, 0, 0)
"""Of every file in the zip: the same bytes whenever it is written."""
_OGG_SERIAL = b"sa3t"
_BLOCK_SAMPLES = 4096
"""At a time: libsndfile's Vorbis encoder keeps a whole block on the stack, and a long one ends the process."""


Voice = Callable[[Any, float, int], Any]
"""(random generator, seconds, rate in Hz) -> (n, 2) float64 of any level."""


@dataclass(frozen=True)
class _Sketch:
    """One clip of the example: how it sounds, and how it is stored."""

    name: str
    caption: str
    rate_hz: int
    seconds: float
    voice: Voice
    subtype: str = "PCM_16"


def write_example(path: Path) -> Path:
    """Write the example dataset as a zip; on one machine always the same bytes.

    Args:
        path: where; an existing file is replaced once the new one is whole.

    Raises:
        PipelineError: the folder cannot be written.
    """
    try:
        with written_aside(path) as file, zipfile.ZipFile(file, "w") as archive:
            for number, sketch in enumerate(_SKETCHES):
                _add(archive, sketch.name, _sound(sketch, seed=number))
                _add(archive, f"{sketch.name.rpartition('.')[0]}.txt", sketch.caption.encode() + b"\n")
    except WriteFailed as error:
        raise PipelineError(f"{path} cannot be written ({error.__cause__}). Choose another place for it.") from error
    return path


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.external_attr = 0o644 << 16
    packs = name.endswith((".wav", ".txt"))
    archive.writestr(entry, content, zipfile.ZIP_DEFLATED if packs else zipfile.ZIP_STORED)


def _sound(sketch: _Sketch, seed: int) -> bytes:
    """One clip as the bytes of its file."""
    import numpy as np
    import soundfile

    audio_NC = sketch.voice(np.random.default_rng(seed), sketch.seconds, sketch.rate_hz)
    audio_NC = 0.7 * audio_NC / np.abs(audio_NC).max()
    buffer = io.BytesIO()
    form = {"wav": "WAV", "flac": "FLAC", "mp3": "MP3", "ogg": "OGG"}[sketch.name.rpartition(".")[2]]
    with soundfile.SoundFile(buffer, "w", sketch.rate_hz, 2, sketch.subtype, format=form) as file:
        for start in range(0, len(audio_NC), _BLOCK_SAMPLES):
            file.write(audio_NC[start : start + _BLOCK_SAMPLES].astype(np.float32))
    return _undated(buffer.getvalue())


def _undated(content: bytes) -> bytes:
    """The file without what libsndfile takes from the clock: the date of a WAV's peak, the serial number of an Ogg."""
    if content.startswith(b"RIFF") and b"PEAK" in content[:200]:
        place = content.index(b"PEAK") + 12
        return content[:place] + bytes(4) + content[place + 4 :]
    return _renumbered(content) if content.startswith(b"OggS") else content


def _renumbered(content: bytes) -> bytes:
    """An Ogg stream under our own serial number, every page's checksum made anew."""
    pages = [
        content[start : start + 14] + _OGG_SERIAL + content[start + 18 : stop] for start, stop in ogg_pages(content)
    ]
    return b"".join(page[:22] + ogg_checksum(page).to_bytes(4, "little") + page[26:] for page in pages)


def _hz(note: int) -> float:
    """Frequency of a MIDI note."""
    return float(440.0 * 2 ** ((note - 69) / 12))


def _mixed(
    notes: Sequence[tuple[float, np.ndarray, float]], seconds: float, rate_hz: int, room: float = 0.25
) -> np.ndarray:
    """Notes as (start in seconds, samples, place from 0 left to 1 right), faded out at the end, with a little echo."""
    import numpy as np

    num_samples = round(seconds * rate_hz)
    audio_NC = np.zeros((num_samples, 2))
    for start, note_N, place in notes:
        first = round(start * rate_hz)
        part_N = note_N * np.minimum(1, np.arange(note_N.size, 0, -1) / (0.05 * rate_hz))
        part_N = part_N[: max(0, num_samples - first)]
        audio_NC[first : first + len(part_N)] += part_N[:, None] * np.sqrt([1 - place, place])
    for delay_seconds, level in ((0.031, room), (0.073, room * 0.6), (0.127, room * 0.4)):
        delay = round(delay_seconds * rate_hz)
        audio_NC[delay:] += level * audio_NC[:-delay, ::-1]
    fade = round(0.05 * rate_hz)
    audio_NC[-fade:] *= np.linspace(1, 0, fade)[:, None]
    return audio_NC


def _plucked(bars: Sequence[Sequence[int]], beats_per_minute: float, damping: float = 0.4985) -> Voice:
    """Strings plucked one after the other in eighths: bursts of noise that a delay line smooths (Karplus-Strong)."""

    def string(random: Any, note: int, seconds: float, rate_hz: int) -> np.ndarray:
        import numpy as np

        period = round(rate_hz / _hz(note) - 0.5)  # the smoothing delays by the other half sample
        turn_N = random.uniform(-1, 1, period)
        turn_N -= turn_N.mean()
        turns = [turn_N]
        for _ in range(int(seconds * rate_hz / period)):
            before_N = np.concatenate([turn_N[-1:], turn_N[:-1]])
            turn_N = damping * (turn_N + before_N)
            turns.append(turn_N)
        string_N = np.concatenate(turns)
        in_tune = _hz(note) * (period + 0.5) / rate_hz
        return np.interp(np.arange(0, string_N.size - 1, in_tune), np.arange(string_N.size), string_N)

    def voice(random: Any, seconds: float, rate_hz: int) -> np.ndarray:
        eighth = 30 / beats_per_minute
        order = [note for bar in bars for note in (*bar, *bar[-2:0:-1])]
        count = int(seconds / eighth)
        notes = [
            (n * eighth, string(random, order[n % len(order)], 2.0, rate_hz), 0.35 + 0.3 * (n % 2))
            for n in range(count)
        ]
        return _mixed(notes, seconds, rate_hz)

    return voice


def _bells(melody: Sequence[int], every: float, decay: float) -> Voice:
    """Inharmonic frequency modulation whose brightness dies faster than its tone (Chowning)."""

    def bell(note: int, seconds: float, rate_hz: int) -> np.ndarray:
        import numpy as np

        time_N = np.arange(round(seconds * rate_hz)) / rate_hz
        turn_N = 2 * np.pi * _hz(note) * time_N
        bright_N = 2.2 * np.exp(-3 * time_N / decay)
        tone_N = np.sin(turn_N + bright_N * np.sin(1.4 * turn_N)) + 0.4 * np.sin(2.76 * turn_N)
        return tone_N * np.exp(-time_N / decay) * np.minimum(1, time_N / 0.002)

    def voice(random: Any, seconds: float, rate_hz: int) -> np.ndarray:
        notes = []
        for number, note in enumerate(melody):
            start = number * every + random.uniform(0, 0.02)
            notes.append((start, bell(note, min(4 * decay, seconds), rate_hz), random.uniform(0.3, 0.7)))
        return _mixed([one for one in notes if one[0] < seconds], seconds, rate_hz, room=0.35)

    return voice


def _drums(kick: str, snare: str, hat: str, beats_per_minute: float) -> Voice:
    """Three patterns of sixteenths (x hits), as often as they fit."""

    def hits(random: Any, rate_hz: int) -> dict[str, np.ndarray]:
        import numpy as np

        time_N = np.arange(round(0.4 * rate_hz)) / rate_hz
        noise_N = random.standard_normal(time_N.size)
        sweep_N = 2 * np.pi * (50 * time_N + 90 * 0.04 * (1 - np.exp(-time_N / 0.04)))
        return {
            "kick": np.sin(sweep_N) * np.exp(-time_N / 0.12),
            "snare": (0.5 * noise_N + np.sin(2 * np.pi * 190 * time_N)) * np.exp(-time_N / 0.07) * 0.6,
            "hat": np.diff(noise_N, prepend=(0.0, 0.0), n=2) * np.exp(-time_N / 0.025) * 0.12,
        }

    def voice(random: Any, seconds: float, rate_hz: int) -> np.ndarray:
        sixteenth, sounds = 15 / beats_per_minute, hits(random, rate_hz)
        parts = (("kick", kick, 0.5), ("snare", snare, 0.45), ("hat", hat, 0.65))
        notes = [
            (number * sixteenth, sounds[name] * random.uniform(0.85, 1.0), place)
            for number in range(int(seconds / sixteenth))
            for name, pattern, place in parts
            if pattern[number % len(pattern)] == "x"
        ]
        return _mixed(notes, seconds, rate_hz, room=0.08)

    return voice


def _pad(chords: Sequence[Sequence[int]]) -> Voice:
    """Slightly detuned partials that fade in and out, one chord after the other."""

    def chord(notes: Sequence[int], seconds: float, rate_hz: int) -> np.ndarray:
        import numpy as np

        time_N = np.arange(round(seconds * rate_hz)) / rate_hz
        swell_N = np.sin(np.pi * time_N / seconds) ** 0.6
        sound_N = np.zeros(time_N.size)
        for note in notes:
            for partial in range(1, 6):
                for detune in (0.997, 1.003):
                    sound_N += np.sin(2 * np.pi * _hz(note) * detune * partial * time_N + note) / partial**1.7
        return sound_N * swell_N * (1 + 0.15 * np.sin(2 * np.pi * 0.4 * time_N))

    def voice(random: Any, seconds: float, rate_hz: int) -> np.ndarray:
        each = seconds / len(chords)
        notes = [(n * each, chord(notes, each, rate_hz), 0.4 + 0.2 * (n % 2)) for n, notes in enumerate(chords)]
        return _mixed(notes, seconds, rate_hz, room=0.4)

    return voice


_AM, _F, _C, _G = (57, 60, 64, 69), (53, 57, 60, 65), (48, 55, 64, 67), (55, 59, 62, 67)
_PENTATONIC = (57, 60, 62, 64, 67, 69)
_SKETCHES = (
    _Sketch(
        "guitar/arpeggio_slow.wav",
        "Slow fingerpicked nylon guitar arpeggio in A minor, warm and intimate, 70 BPM",
        *(44100, 5.5, _plucked([_AM, _F], 70)),
    ),
    _Sketch(
        "guitar/arpeggio_bright.flac",
        "Bright steel string guitar arpeggio, C major to G major, hopeful folk, 110 BPM",
        *(48000, 4.5, _plucked([_C, _G], 110, damping=0.4992)),
    ),
    _Sketch(
        "guitar/harp_run.mp3",
        "Celtic harp run up and down a pentatonic scale, airy and clear, solo",
        *(44100, 6.0, _plucked([_PENTATONIC, _PENTATONIC[::-1]], 150), "MPEG_LAYER_III"),
    ),
    _Sketch(
        "guitar/bass_riff.wav",
        "Plucked electric bass riff in A, dry, funky, 96 BPM",
        *(22050, 5.0, _plucked([(33, 33, 36, 38), (33, 40, 38, 36)], 96, damping=0.497)),
    ),
    _Sketch(
        "bells/tower.flac",
        "Large church bell struck three times, long metallic decay, distant",
        *(32000, 9.0, _bells((45, 45, 45), every=2.6, decay=3.5)),
    ),
    _Sketch(
        "bells/music_box.ogg",
        "Delicate music box melody in C major, lullaby, nostalgic",
        *(44100, 8.0, _bells((84, 88, 91, 88, 84, 86, 89, 86, 83, 84), every=0.6, decay=1.1), "VORBIS"),
    ),
    _Sketch(
        "bells/kalimba.wav",
        "Kalimba pattern, pentatonic, soft wooden attack, playful, 100 BPM",
        *(96000, 2.2, _bells((69, 72, 76, 79, 76, 72), every=0.3, decay=0.4), "FLOAT"),
    ),
    _Sketch(
        "bells/glass_chimes.mp3",
        "Glass wind chimes in a light breeze, sparse, shimmering, ambient texture",
        *(48000, 10.0, _bells((93, 96, 91, 98, 95, 100, 93), every=1.2, decay=1.8), "MPEG_LAYER_III"),
    ),
    _Sketch(
        "drums/four_on_the_floor.wav",
        "Four on the floor house drum loop, punchy kick, open hats, 124 BPM",
        *(44100, 4.0, _drums("x...x...x...x...", "....x.......x...", "..x...x...x...x.", 124)),
    ),
    _Sketch(
        "drums/boom_bap.flac",
        "Boom bap hip hop drum break, dusty snare, laid back, 88 BPM",
        *(44100, 5.5, _drums("x..x......x.x...", "....x.......x..x", "x.x.x.x.x.x.x.x.", 88)),
    ),
    _Sketch(
        "drums/half_time.ogg",
        "Half time drum pattern, deep kick and wide snare, spacious, 70 BPM",
        *(48000, 6.9, _drums("x.....x.........", "........x.......", "x...x...x...x.x.", 70), "VORBIS"),
    ),
    _Sketch(
        "pads/warm.ogg",
        "Warm analog synth pad, slow attack, A minor to F major, dreamy ambient",
        *(44100, 12.0, _pad([_AM, _F]), "VORBIS"),
    ),
    _Sketch(
        "pads/organ drone.flac",
        "Sustained organ drone on a fifth, solemn, slowly swelling",
        *(22050, 6.0, _pad([(45, 52, 57)])),
    ),
    _Sketch(
        "pads/short_swell.wav",
        "Short cinematic string swell in C major, rising, hopeful",
        *(48000, 2.0, _pad([_C]), "PCM_24"),
    ),
)
