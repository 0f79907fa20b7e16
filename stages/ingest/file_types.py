"""Which files of a dataset are audio, captions or archives, by suffix. Light: standard library only."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath
from posixpath import splitext

from stages.errors import Fault
from stages.ingest.faults import fault

WITH_PYAV = {".m4a", ".m4b", ".aac", ".wma", ".mka", ".weba", ".wv", ".tta", ".ape", ".spx", ".3gp", ".3g2"}
"""Suffixes of audio that, as a rule, is decoded where the optional package PyAV is installed; the bytes decide."""
OLD = {".voc", ".nist", ".sph", ".8svx", ".svx"}
"""Suffixes of audio of old sound cards, speech corpora and the Amiga, which libsndfile reads."""
READABLE = {".wav", ".wave", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc"} | {
    *(".au", ".snd", ".caf", ".w64", ".rf64", *WITH_PYAV, *OLD)
}
"""Suffixes of audio that is decoded."""
UNREADABLE = {".alac", ".tak", ".mpc", ".ac3", ".eac3", ".dts", ".dsf", ".dff", ".amr", ".ra"}
"""Suffixes of audio that is not decoded. A fault, as ignoring such a file would silently lose a clip."""
CAPTION = ".txt"
TABLES = {".csv", ".tsv", ".jsonl"}
"""Suffixes of tables of captions, which `captions` reads; it reads .txt and .json files that are tables as well."""
ARCHIVES = {".zip", ".rar", ".7z", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst"}
"""Suffixes of archives. A fault inside a dataset, as there may be clips in them."""


def suffix(name: str) -> str:
    """`.wav` of `drums/Kick.WAV`."""
    return splitext(name)[1].lower().rstrip(".")  # several times faster than pathlib, and called for every file


def stem(name: str) -> str:
    """`drums/Kick` of `drums/Kick.WAV`."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.name else name


def pairing_key(name: str) -> str:
    """The stem in one Unicode form, by which files are paired: macOS decomposes accents, other systems do not."""
    return unicodedata.normalize("NFC", stem(name))


def unreadable_format(name: str) -> Fault:
    """The fault of audio that cannot be decoded here, and its remedy."""
    return fault(name, "unsupported_audio_format", suffix=suffix(name), name=name, stem=stem(name), remedy="Convert it")
