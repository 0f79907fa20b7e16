"""Ranges of samples to decode, here or in a worker process. Light: workers that only decode must not load torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import StageError
from stages.prepared_audio import read_prepared

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class SampleRange:
    """Samples `start` to `stop` of a prepared clip."""

    path: Path
    start: int
    stop: int

    def read(self) -> np.ndarray:
        """(2, stop - start) float32. Raises: PreparedAudioMissing."""
        return read_prepared(self.path, self.start, self.stop)


def read_ranges(ranges: Sequence[SampleRange]) -> list[np.ndarray | None]:
    """The samples of each; None for one that cannot be read: reading it again in the main process raises the reason."""
    return [_read(samples) for samples in ranges]


def _read(samples: SampleRange) -> np.ndarray | None:
    try:
        return samples.read()
    except StageError:
        return None
