"""Prepared audio, read: the one thing about ingest's files that encode and train know."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import PreparedAudioMissing

if TYPE_CHECKING:
    import numpy as np


def read_prepared(path: Path, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Samples `start` to `stop` of a prepared clip: (2, n) float32, contiguous; only that part is decoded.

    Args:
        path: the file, the store's shared folder joined with `Clip.audio`.
        stop: None, or beyond the end: to the end.

    Raises:
        PreparedAudioMissing: the file is gone or damaged.
    """
    import numpy as np
    import soundfile  # deferred: plan and status must not wait for arrays

    if not path.is_file():
        raise PreparedAudioMissing(path, "is gone")
    try:
        audio_NC, _ = soundfile.read(path, start=start, stop=stop, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise PreparedAudioMissing(path, f"is damaged ({error})") from error
    return np.ascontiguousarray(audio_NC.T)


def read_prepared_into(path: Path, out_NC: np.ndarray) -> None:
    """Decode the beginning of a prepared clip straight to where it is wanted.

    Args:
        out_NC: (n, 2) float32, contiguous; holds samples 0 to n-1 afterwards.

    Raises:
        PreparedAudioMissing: the file is gone, damaged, or shorter than that.
    """
    import soundfile  # deferred, as above

    if not path.is_file():
        raise PreparedAudioMissing(path, "is gone")
    try:
        found_NC, _ = soundfile.read(path, out=out_NC, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise PreparedAudioMissing(path, f"is damaged ({error})") from error
    if len(found_NC) < len(out_NC):
        raise PreparedAudioMissing(path, f"is damaged (it ends after {len(found_NC)} of {len(out_NC)} samples)")
