"""The example dataset: short clips of a style that tiny-base does not know, each with a caption, in one zip.

The clips differ in format, sample rate and length as those of real collections do, so the example exercises ingest.
Light: standard library only; numpy and soundfile are imported by the functions that use them.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cache.errors import WriteFailed
from cache.files.atomic_files import atomic_write
from pipeline.errors import PipelineError
from pipeline.example_style import StyleClip, style_clips
from stages.ingest.integrity.ogg import ogg_checksum, ogg_pages

_TIMESTAMP = (2024, 1, 1, 0, 0, 0)
"""Modification time of every file in the zip, so that the zip has the same bytes whenever it is written."""
_OGG_SERIAL = b"sa3t"
_BLOCK_SAMPLES = 4096
"""Samples per write: libsndfile's Vorbis encoder keeps a whole block on the stack, and a long one overflows it."""


@dataclass(frozen=True)
class _ClipSpec:
    """One clip of the example: its file and its sound."""

    name: str
    subtype: str
    """Sample format, as libsndfile names it."""
    rate_hz: int
    seconds: float
    clip: StyleClip


def write_example(path: Path) -> Path:
    """Write the example dataset as a zip; on one machine always the same bytes.

    Args:
        path: an earlier example is replaced once the new one is complete; any other file is kept.

    Raises:
        PipelineError: the file cannot be written, or is another one.
    """
    if path.is_dir():
        raise PipelineError(f"{path} is a folder. Name the file to write, such as {path / 'example.zip'}.")
    if path.is_file() and not _is_example(path):
        raise PipelineError(f"{path} is there already, and is not the example. Nothing was written; name another file.")
    with _refused_in_words(path), atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for spec in _clip_specs():
            _add(archive, spec.name, _encoded_file(spec))
            _add(archive, str(PurePosixPath(spec.name).with_suffix(".txt")), spec.clip.caption.encode() + b"\n")
    return path


def _is_example(path: Path) -> bool:
    """Whether a file is a zip of the names that the example has, as an interrupted or an earlier one is."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name for name in archive.namelist() if not name.endswith(".txt")} <= {s.name for s in _clip_specs()}
    except (OSError, zipfile.BadZipFile):
        return False


@contextmanager
def _refused_in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except WriteFailed as error:
        raise PipelineError(f"{path} cannot be written ({error.__cause__}). Choose another place for it.") from error


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _TIMESTAMP)
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content, zipfile.ZIP_DEFLATED)


def _encoded_file(spec: _ClipSpec) -> bytes:
    """One clip as the bytes of its audio file."""
    import numpy as np
    import soundfile

    audio_XA = spec.clip.synth(None, spec.seconds, spec.rate_hz)
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


_FORMATS = (
    # suffix, sample format, rate in Hz, seconds
    ("wav", "PCM_16", 44100, 4.5),
    ("flac", "PCM_24", 48000, 5.0),
    ("mp3", "MPEG_LAYER_III", 44100, 6.0),
    ("aiff", "PCM_16", 22050, 5.5),
    ("caf", "PCM_16", 32000, 5.0),
    ("ogg", "VORBIS", 44100, 6.0),
    ("w64", "FLOAT", 96000, 2.5),
    ("rf64", "PCM_16", 44100, 3.5),
    ("au", "PCM_16", 44100, 4.0),
    ("opus", "OPUS", 48000, 5.5),
)
"""One clip of each, then only of the small ones."""
_SMALL_FORMATS = tuple(one for one in _FORMATS if one[0] in ("mp3", "ogg", "opus"))
NUM_CLIPS, NUM_HELD_OUT = 24, 16
_SEED, _HELD_OUT_SEED = 0, 1
HELD_OUT_SECONDS = 5.0


def _clip_specs() -> list[_ClipSpec]:
    formats = [*_FORMATS, *_SMALL_FORMATS * NUM_CLIPS][:NUM_CLIPS]
    return [
        _ClipSpec(f"{clip.rhythm}/{clip.beats_per_minute} bpm {number:02d}.{suffix}", subtype, rate_hz, seconds, clip)
        for number, (clip, (suffix, subtype, rate_hz, seconds)) in enumerate(
            zip(style_clips(NUM_CLIPS, _SEED), formats, strict=True), 1
        )
    ]


def write_held_out(folder: Path) -> Path:
    """Write clips of the style that are not in the example, to compare generated ones with.

    Raises:
        PipelineError: a file cannot be written.
    """
    for number, clip in enumerate(style_clips(NUM_HELD_OUT, _HELD_OUT_SEED), 1):
        spec = _ClipSpec(f"{number:02d}.flac", "PCM_16", 44100, HELD_OUT_SECONDS, clip)
        with _refused_in_words(folder), atomic_write(folder / spec.name) as file:
            file.write(_encoded_file(spec))
    return folder
