"""Prepared audio files of ingest, and the facts beside each. Light: soundfile is imported when it is used.

    prepared/ab/<key>.flac   samples
    prepared/ab/<key>.json   facts, with the checksum of the FLAC file, and a digest of themselves and of the key

Encode and train read the samples. Before a process first decodes a file it compares it with its checksum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.checked_record import checked, with_check
from cache.files.atomic_files import atomic_write_bytes
from cache.files.regular_file import read_regular
from cache.fingerprint import digest_file
from stages.errors import PreparedAudioMissing

if TYPE_CHECKING:
    import numpy as np

_Stamp = tuple[int, int, int, int]
_COMPARED: dict[Path, _Stamp] = {}
"""State of the files that this process has compared with their checksums: crops of one clip are read many times."""
_MAX_COMPARED = 100_000


def write_facts(audio: Path, facts: Mapping[str, Any]) -> None:
    """Writes the facts of a prepared clip beside its FLAC, and makes both names durable."""
    content = json.dumps(with_check(facts, audio.stem), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    atomic_write_bytes(audio.with_suffix(".json"), content.encode() + b"\n", fsync=("folder",))


def read_facts(audio: Path) -> dict[str, Any]:
    """The facts of a prepared clip.

    Raises:
        OSError: they cannot be read.
        ValueError: they are damaged, or those of another file.
    """
    return checked(json.loads(read_regular(audio.with_suffix(".json"))), audio.stem)


def has_earlier_facts(audio: Path) -> bool:
    """Whether the facts are of a version without a digest of themselves: ingest then decodes the clip again."""
    try:
        facts = json.loads(read_regular(audio.with_suffix(".json")))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and "checksum" in facts and "check" not in facts


def damage_of(audio: Path) -> str:
    """What is wrong with a prepared clip, of which every byte is read; empty where nothing is."""
    try:
        facts = read_facts(audio)
        if audio.exists() and not audio.is_file():  # reading a pipe would wait for ever
            return "is no regular file"
        if not facts["is_silent"]:  # a silent part of a long recording has no FLAC
            same = digest_file(audio) == facts["checksum"]
            return "" if same else "is damaged (it has other bytes than when it was prepared)"
    except FileNotFoundError:
        return "has no facts beside it" if audio.exists() else "is gone"
    except (OSError, ValueError, KeyError, RecursionError) as error:
        return f"cannot be compared with its facts ({error})"
    return ""


def read_prepared(path: Path, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Samples `start` to `stop` of a prepared clip: (2, X) float32, contiguous; only that part is decoded.

    Args:
        path: the store's shared folder joined with `Clip.audio`.
        stop: None, or beyond the end: to the end.

    Raises:
        PreparedAudioMissing: the file is missing or damaged.
    """
    import numpy as np
    import soundfile  # deferred: plan and status do without arrays

    _compare_once(path)
    try:
        audio_XA, _ = soundfile.read(path, start=start, stop=stop, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise PreparedAudioMissing(path, f"is damaged ({error})") from error
    return np.ascontiguousarray(audio_XA.T)


def read_prepared_into(path: Path, out_XA: np.ndarray) -> None:
    """Decodes the beginning of a prepared clip into a given array.

    Args:
        out_XA: (X, 2) float32, contiguous; holds samples 0 to X - 1 afterwards.

    Raises:
        PreparedAudioMissing: the file is missing, damaged, or shorter than that.
    """
    import soundfile  # deferred, as above

    _compare_once(path)
    try:
        decoded_XA, _ = soundfile.read(path, out=out_XA, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise PreparedAudioMissing(path, f"is damaged ({error})") from error
    if len(decoded_XA) < len(out_XA):
        raise PreparedAudioMissing(path, f"is damaged (it ends after {len(decoded_XA)} of {len(out_XA)} samples)")


def _compare_once(path: Path) -> None:
    """Compares a file with its checksum, unless this process did so since it last changed.

    Raises:
        PreparedAudioMissing: they differ, or one of them cannot be read.
    """
    stamp = _stamp(path)
    if stamp is not None and _COMPARED.get(path) == stamp:
        return
    if damage := damage_of(path):
        raise PreparedAudioMissing(path, damage)
    if len(_COMPARED) >= _MAX_COMPARED:
        _COMPARED.clear()
    if stamp is not None:
        _COMPARED[path] = stamp


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
