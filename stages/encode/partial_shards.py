"""Latents of the shard that is being filled, clip by clip, so that a stop loses none of them.

A shard is sealed when it is full, and most datasets fill none before their end. Until then each clip's latents lie in a
file of their own in the workspace; sealing reads the same values, so the shard's bytes are those of an unstopped run.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from cache.files.atomic_files import atomic_write_bytes


class Keyed(Protocol):
    """What a piece is named after."""

    @property
    def key(self) -> str: ...


K = TypeVar("K", bound=Keyed)


class Pieces:
    """One file per clip, in a folder of the workspace."""

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "pieces"

    def keeping(self, make: Callable[[K], np.ndarray]) -> Callable[[K], np.ndarray]:
        """`make`, remembered across stops: a piece that is there is read instead of made again."""

        def kept(task: K) -> np.ndarray:
            found = self.find(task.key)
            if found is not None:
                return found
            made = make(task)
            self.keep(task.key, made)
            return made

        return kept

    def find(self, key: str) -> np.ndarray | None:
        """The piece of that name, if it is there."""
        file = self._file(key)
        return np.load(file, allow_pickle=False) if file.is_file() else None

    def keep(self, key: str, frames: np.ndarray) -> None:
        """Write one piece."""
        held = io.BytesIO()
        np.save(held, frames, allow_pickle=False)
        self.folder.mkdir(exist_ok=True)
        atomic_write_bytes(self._file(key), held.getvalue())

    def let_go(self, keys: Iterable[str]) -> None:
        """Forget pieces that lie in a sealed shard now."""
        for key in keys:
            self._file(key).unlink(missing_ok=True)

    def clear(self) -> None:
        """Leave nothing behind in the artifact."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.npy"
