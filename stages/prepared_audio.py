"""Reading the prepared audio files of ingest, for encode and train. Light: soundfile is imported when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import PreparedAudioMissing

if TYPE_CHECKING:
    import numpy as np


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

    if not path.is_file():
        raise PreparedAudioMissing(path, "is gone")
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

    if not path.is_file():
        raise PreparedAudioMissing(path, "is gone")
    try:
        decoded_XA, _ = soundfile.read(path, out=out_XA, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise PreparedAudioMissing(path, f"is damaged ({error})") from error
    if len(decoded_XA) < len(out_XA):
        raise PreparedAudioMissing(path, f"is damaged (it ends after {len(decoded_XA)} of {len(out_XA)} samples)")
