"""The MD5 that a FLAC's header holds of all its samples (RFC 9639, 8.2): as integers, channels interleaved.

It detects a header that declares too few samples, which decoders do not notice.
"""

from __future__ import annotations

import hashlib

import numpy as np

_BYTES = {"PCM_S8": 1, "PCM_16": 2, "PCM_24": 3}


class FlacMd5:
    """MD5 of the decoded blocks. Float32 samples represent integers up to 24 bit exactly."""

    def __init__(self, expected: bytes, num_bytes: int) -> None:
        self._expected = expected
        self._num_bytes = num_bytes
        self._found = hashlib.md5(usedforsecurity=False)

    def add(self, block_XA: np.ndarray) -> None:
        """Add one decoded block, (n, channels) float32 with all channels."""
        scaled_XA = block_XA * np.float32(1 << (8 * self._num_bytes - 1))
        whole = np.ascontiguousarray(scaled_XA, np.dtype("<i2") if self._num_bytes == 2 else np.dtype("<i4"))
        if self._num_bytes == 2:
            self._found.update(whole.reshape(-1).data)
        else:
            self._found.update(whole.view(np.uint8).reshape(-1, 4)[:, : self._num_bytes].tobytes())

    def matches(self) -> bool:
        """Whether the samples added are those that were encoded."""
        return self._found.digest() == self._expected


def flac_md5(data: bytes, subtype: str, num_samples: int) -> FlacMd5 | None:
    """The checksum to compare a FLAC with; None for another format, or a FLAC without one."""
    expected = data[26:42]
    if not data.startswith(b"fLaC") or len(expected) < 16 or not any(expected) or not num_samples:
        return None
    return FlacMd5(expected, _BYTES[subtype]) if subtype in _BYTES else None
