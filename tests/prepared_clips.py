"""Prepared clips as ingest leaves them: a FLAC, and the facts that readers compare it with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from cache.fingerprint import digest_file
from stages.prepared_audio import write_facts


def write_prepared(path: Path, audio_XA: np.ndarray) -> Path:
    """A prepared clip at 44.1 kHz, 24 bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio_XA, 44_100, subtype="PCM_24")
    write_facts(path, {"checksum": digest_file(path), "is_silent": False})
    return path
