"""A FLAC's own checksum of the whole sound (RFC 9639, 8.2): MD5 over the samples as integers, all channels in turn.

A decoder that reads as many samples as the header says, and the header says too few, notices nothing; this does.
"""

from __future__ import annotations

import hashlib

import numpy as np

_BYTES = {"PCM_S8": 1, "PCM_16": 2, "PCM_24": 3}


class FlacSum:
    """Grows with the decoded blocks; float32 holds integers up to 24 bit exactly."""

    def __init__(self, expected: bytes, num_bytes: int) -> None:
        self._expected = expected
        self._num_bytes = num_bytes
        self._found = hashlib.md5(usedforsecurity=False)

    def add(self, block_NC: np.ndarray) -> None:
        """One decoded block, every channel of it."""
        scaled_NC = block_NC * np.float32(1 << (8 * self._num_bytes - 1))
        whole = np.ascontiguousarray(scaled_NC, np.dtype("<i2") if self._num_bytes == 2 else np.dtype("<i4"))
        if self._num_bytes == 2:
            self._found.update(whole.reshape(-1).data)
        else:
            self._found.update(whole.view(np.uint8).reshape(-1, 4)[:, : self._num_bytes].tobytes())

    def fits(self) -> bool:
        """Whether the sound is what was encoded."""
        return self._found.digest() == self._expected


def flac_sum(data: bytes, subtype: str, num_samples: int) -> FlacSum | None:
    """What a FLAC announces; None for another file, or one that announces nothing."""
    expected = data[26:42]
    if not data.startswith(b"fLaC") or len(expected) < 16 or not any(expected) or not num_samples:
        return None
    return FlacSum(expected, _BYTES[subtype]) if subtype in _BYTES else None
