"""Samples to be decoded, here or by another process. Light: a process that only decodes must not load torch."""

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


def read_ranges(stretches: Sequence[SampleRange]) -> list[np.ndarray | None]:
    """The samples of each; None for one that cannot be read, which tells whoever needs it when it is read again."""
    return [_read(stretch) for stretch in stretches]


def _read(stretch: SampleRange) -> np.ndarray | None:
    try:
        return stretch.read()
    except StageError:
        return None
