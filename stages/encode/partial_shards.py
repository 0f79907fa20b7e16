"""Latents of the shard that is being filled, saved clip by clip so that a stop loses none of them.

A shard is written when it is full, and most datasets fill none before their end. Until then each clip's latents are in
a file of their own in the workspace. The shard is written from the same values, so its bytes are those of an
uninterrupted run.
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
    """Anything with the key that names its file."""

    @property
    def key(self) -> str: ...


K = TypeVar("K", bound=Keyed)


class PartialLatents:
    """Saved latents, one file per clip, in a folder of the workspace."""

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "pieces"

    def cached(self, encode: Callable[[K], np.ndarray]) -> Callable[[K], np.ndarray]:
        """`encode` with its results saved: latents that are saved already are loaded instead."""

        def loaded_or_encoded(task: K) -> np.ndarray:
            saved = self.load(task.key)
            if saved is not None:
                return saved
            frames = encode(task)
            self.save(task.key, frames)
            return frames

        return loaded_or_encoded

    def load(self, key: str) -> np.ndarray | None:
        """The latents saved under that key; None if there are none."""
        file = self._file(key)
        return np.load(file, allow_pickle=False) if file.is_file() else None

    def save(self, key: str, frames: np.ndarray) -> None:
        """Write the latents of one clip."""
        buffer = io.BytesIO()
        np.save(buffer, frames, allow_pickle=False)
        self.folder.mkdir(exist_ok=True)
        atomic_write_bytes(self._file(key), buffer.getvalue())

    def discard(self, keys: Iterable[str]) -> None:
        """Delete latents that are in a finished shard now."""
        for key in keys:
            self._file(key).unlink(missing_ok=True)

    def num_bytes(self) -> int:
        """Bytes of all saved latents."""
        return sum(file.stat().st_size for file in self.folder.glob("*.npy"))

    def clear(self) -> None:
        """Delete the folder, which must not become part of the artifact."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.npy"
