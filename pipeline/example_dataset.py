"""The example dataset: one short synthesised clip per audio format, each with a caption, in one zip.

The clips differ in format, sample rate and length as those of real collections do, so the example exercises ingest.
Light: standard library only; numpy and soundfile are imported by the functions that use them.

Sources: Karplus and Strong (1983) for the plucked strings; Chowning (1973) for the bells.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cache.errors import WriteFailed
from cache.files.atomic_files import atomic_write
from pipeline.errors import PipelineError
from stages.ingest.integrity.ogg import ogg_checksum, ogg_pages

if TYPE_CHECKING:
    import numpy as np

_TIMESTAMP = (2024, 1, 1, 0, 0, 0)
"""Modification time of every file in the zip, so that the zip has the same bytes whenever it is written."""
_OGG_SERIAL = b"sa3t"
_BLOCK_SAMPLES = 4096
"""Samples per write: libsndfile's Vorbis encoder keeps a whole block on the stack, and a long one overflows it."""

Synth = Callable[[Any, float, int], "np.ndarray"]
"""(random generator, seconds, rate in Hz) -> audio (samples, 2), float64, of any level."""


@dataclass(frozen=True)
class _ClipSpec:
    """One clip of the example: its file, its caption and its sound."""

    name: str
    subtype: str
    """Sample format, as libsndfile names it."""
    rate_hz: int
    seconds: float
    caption: str
    synth: Synth


def write_example(path: Path) -> Path:
    """Write the example dataset as a zip; on one machine always the same bytes.

    Args:
        path: an existing file is replaced once the new one is complete.

    Raises:
        PipelineError: the file cannot be written.
    """
    try:
        with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
            for seed, spec in enumerate(_CLIPS):
                _add(archive, spec.name, _encoded_file(spec, seed))
                _add(archive, str(PurePosixPath(spec.name).with_suffix(".txt")), spec.caption.encode() + b"\n")
    except WriteFailed as error:
        raise PipelineError(f"{path} cannot be written ({error.__cause__}). Choose another place for it.") from error
    return path


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _TIMESTAMP)
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content, zipfile.ZIP_DEFLATED)


def _encoded_file(spec: _ClipSpec, seed: int) -> bytes:
    """One clip as the bytes of its audio file."""
    import numpy as np
    import soundfile

    audio_XA = spec.synth(np.random.default_rng(seed), spec.seconds, spec.rate_hz)
    audio_XA = 0.7 * audio_XA / np.abs(audio_XA).max()
    buffer = io.BytesIO()
    suffix = PurePosixPath(spec.name).suffix[1:]
    container = {"opus": "OGG"}.get(suffix, suffix.upper())
    with soundfile.SoundFile(buffer, "w", spec.rate_hz, 2, spec.subtype, format=container) as file:
        for start in range(0, len(audio_XA), _BLOCK_SAMPLES):
            file.write(audio_XA[start : start + _BLOCK_SAMPLES].astype(np.float32))
    content = buffer.getvalue()
    return _with_fixed_serial(content) if container == "OGG" else content


def _with_fixed_serial(content: bytes) -> bytes:
    """An Ogg stream with a constant serial number in place of libsndfile's random one, and new page checksums."""
    pages = [
        content[start : start + 14] + _OGG_SERIAL + content[start + 18 : stop] for start, stop in ogg_pages(content)
    ]
    return b"".join(page[:22] + ogg_checksum(page).to_bytes(4, "little") + page[26:] for page in pages)


def _hz(note: int) -> float:
    """Frequency of a MIDI note."""
    return float(440.0 * 2 ** ((note - 69) / 12))


def _mix(notes: Sequence[tuple[float, np.ndarray, float]], seconds: float, rate_hz: int) -> np.ndarray:
    """Notes as (start in seconds, samples, pan from 0 left to 1 right) mixed to stereo, faded out at the end."""
    import numpy as np

    audio_XA = np.zeros((round(seconds * rate_hz), 2))
    for start, note_X, pan in notes:
        first = round(start * rate_hz)
        part_X = note_X[: len(audio_XA) - first]
        audio_XA[first : first + len(part_X)] += part_X[:, None] * np.sqrt([1 - pan, pan])
    fade = round(0.05 * rate_hz)
    audio_XA[-fade:] *= np.linspace(1, 0, fade)[:, None]
    return audio_XA


def _plucked(notes: Sequence[int], beats_per_minute: float, damping: float = 0.4985) -> Synth:
    """Strings plucked in eighths: noise bursts that circulate in a smoothing delay line (Karplus and Strong)."""

    def string(random: Any, note: int, rate_hz: int) -> np.ndarray:
        import numpy as np

        period = round(rate_hz / _hz(note) - 0.5)  # the smoothing delays by the other half sample
        cycle_X = random.uniform(-1, 1, period)
        cycles = [cycle_X - cycle_X.mean()]
        for _ in range(2 * rate_hz // period):
            cycles.append(damping * (cycles[-1] + np.roll(cycles[-1], 1)))
        return np.concatenate(cycles) * np.linspace(1, 0, len(cycles) * period)

    def synth(random: Any, seconds: float, rate_hz: int) -> np.ndarray:
        eighth = 30 / beats_per_minute
        strings = [string(random, notes[n % len(notes)], rate_hz) for n in range(int(seconds / eighth))]
        return _mix([(n * eighth, one, 0.35 + 0.3 * (n % 2)) for n, one in enumerate(strings)], seconds, rate_hz)

    return synth


def _bells(notes: Sequence[int], every: float, decay: float) -> Synth:
    """Inharmonic frequency modulation whose brightness decays faster than its level (Chowning)."""

    def bell(note: int, rate_hz: int) -> np.ndarray:
        import numpy as np

        time_X = np.arange(round(4 * decay * rate_hz)) / rate_hz
        phase_X = 2 * np.pi * _hz(note) * time_X
        tone_X = np.sin(phase_X + 2.2 * np.exp(-3 * time_X / decay) * np.sin(1.4 * phase_X))
        return (tone_X + 0.4 * np.sin(2.76 * phase_X)) * np.exp(-time_X / decay) * np.minimum(1, time_X / 0.002)

    def synth(random: Any, seconds: float, rate_hz: int) -> np.ndarray:
        struck = [(n * every, bell(note, rate_hz), random.uniform(0.3, 0.7)) for n, note in enumerate(notes)]
        return _mix(struck, seconds, rate_hz)

    return synth


def _drums(kick: str, snare: str, hat: str, beats_per_minute: float) -> Synth:
    """Three patterns of sixteenths (x hits), repeated to the end."""

    def synth(random: Any, seconds: float, rate_hz: int) -> np.ndarray:
        import numpy as np

        time_X = np.arange(round(0.4 * rate_hz)) / rate_hz
        noise_X = random.standard_normal(time_X.size)
        sweep_X = 2 * np.pi * (50 * time_X + 3.6 * (1 - np.exp(-time_X / 0.04)))
        tone_X = np.sin(2 * np.pi * 190 * time_X)
        parts = (
            (kick, np.sin(sweep_X) * np.exp(-time_X / 0.12), 0.5),
            (snare, (0.3 * noise_X + 0.6 * tone_X) * np.exp(-time_X / 0.07), 0.45),
            (hat, 0.12 * np.diff(noise_X, prepend=(0.0, 0.0), n=2) * np.exp(-time_X / 0.025), 0.65),
        )
        sixteenth = 15 / beats_per_minute
        hits = [
            (n * sixteenth, sound_X * random.uniform(0.85, 1.0), pan)
            for n in range(int(seconds / sixteenth))
            for pattern, sound_X, pan in parts
            if pattern[n % len(pattern)] == "x"
        ]
        return _mix(hits, seconds, rate_hz)

    return synth


# fmt: off
_CLIPS = (
    _ClipSpec("guitar/arpeggio_slow.wav", "PCM_16", 44100, 5.5,
              "Slow fingerpicked nylon guitar arpeggio in A minor, warm and intimate, 70 BPM",
              _plucked((57, 60, 64, 69, 64, 60), 70)),
    _ClipSpec("guitar/arpeggio_bright.flac", "PCM_24", 48000, 4.5,
              "Bright steel string guitar arpeggio in C major, hopeful folk, 110 BPM",
              _plucked((48, 55, 64, 67, 64, 55), 110, 0.4992)),
    _ClipSpec("guitar/harp run.mp3", "MPEG_LAYER_III", 44100, 6.0,
              "Celtic harp run up and down a pentatonic scale, airy and clear, solo",
              _plucked((57, 60, 62, 64, 67, 69, 67, 64, 62, 60), 150)),
    _ClipSpec("guitar/bass_riff.aiff", "PCM_16", 22050, 5.0,
              "Plucked electric bass riff in A, dry, funky, 96 BPM",
              _plucked((33, 33, 36, 38, 33, 40, 38, 36), 96, 0.497)),
    _ClipSpec("bells/tower.caf", "PCM_16", 32000, 7.0,
              "Large church bell struck three times, long metallic decay, distant",
              _bells((45, 45, 45), every=2.0, decay=3.0)),
    _ClipSpec("bells/music_box.ogg", "VORBIS", 44100, 8.0,
              "Delicate music box melody in C major, lullaby, nostalgic",
              _bells((84, 88, 91, 88, 84, 86, 89, 86, 83, 84), every=0.6, decay=1.1)),
    _ClipSpec("bells/kalimba.w64", "FLOAT", 96000, 2.2,
              "Kalimba pattern, pentatonic, soft wooden attack, playful, 100 BPM",
              _bells((69, 72, 76, 79, 76, 72), every=0.3, decay=0.4)),
    _ClipSpec("drums/four_on_the_floor.rf64", "PCM_16", 44100, 4.0,
              "Four on the floor house drum loop, punchy kick, open hats, 124 BPM",
              _drums("x...x...x...x...", "....x.......x...", "..x...x...x...x.", 124)),
    _ClipSpec("drums/boom_bap.au", "PCM_16", 44100, 5.5,
              "Boom bap hip hop drum break, dusty snare, laid back, 88 BPM",
              _drums("x..x......x.x...", "....x.......x..x", "x.x.x.x.x.x.x.x.", 88)),
    _ClipSpec("drums/half_time.opus", "OPUS", 48000, 6.9,
              "Half time drum pattern, deep kick and wide snare, spacious, 70 BPM",
              _drums("x.....x.........", "........x.......", "x...x...x...x.x.", 70)),
)
# fmt: on
