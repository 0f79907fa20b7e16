"""Latents of many clips, asked for one by one, made some batches ahead: threads read and decode, the device encodes.

Batches go on from one shard group to the next without a pause, so a shard is written while the next one is encoded.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from stages.encode.batching import batches_of
from stages.encode.device_batches import Launched, OnDevice
from stages.encode.partial_shards import Pieces
from stages.errors import Stopped

AHEAD_FRAMES = 4
"""Batches' worth of frames that are read ahead at most; fewer when that many clips keep every reader busy."""
MOST_READERS = 16
ON_THE_WAY = 2
"""Batches given to the device and not yet taken back: it always has one to begin with."""
KEEP_EVERY_SECONDS = 10.0
"""After so much work that no sealed shard holds, its latents are kept in files, for a run that is killed."""


class Readable(Protocol):
    """What a clip must say to be encoded."""

    @property
    def key(self) -> str: ...

    @property
    def num_frames(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def fill(self) -> Callable[[np.ndarray], None]: ...


T = TypeVar("T", bound=Readable)
Reading = tuple[list[T], list[Future[Tensor]]]
Running = tuple[list[T], list[Launched]]


def num_readers(asked: int) -> int:
    """Threads that read and decode: as many as asked for, else one per core. The decoder runs outside Python's lock."""
    return asked or max(2, min(MOST_READERS, os.cpu_count() or 1))


class Ahead(Generic[T]):
    """Callable with one task after the other, in the order of the groups; a context that ends the threads.

    Latents that are finished when it is left by an error, a stop included, are kept as pieces.

    Args:
        groups: tasks of each shard; a batch holds tasks of one group.
        checked: (task, its latents) to the latents as they are stored; raises for latents that cannot be.
        check_stop: called before every batch; raises Stopped.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[T]],
        on_device: OnDevice,
        pieces: Pieces,
        readers: int,
        checked: Callable[[T, np.ndarray], np.ndarray],
        check_stop: Callable[[], None],
    ) -> None:
        self.on_device, self.pieces, self.checked, self.check_stop = on_device, pieces, checked, check_stop
        self.readers = readers
        silence = on_device.encoder.silence_frames
        self._batches = deque(
            [group[place] for place in batch]
            for group in groups
            for batch in batches_of([task.num_frames + silence for task in group], on_device.most_frames)
        )
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="reader")
        self._reading: deque[Reading[T]] = deque()
        self._running: deque[Running[T]] = deque()
        self._made: dict[str, np.ndarray] = {}
        self._unsealed: dict[str, np.ndarray] = {}
        self._kept_at = time.monotonic()

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if kind is not None:
            if issubclass(kind, Stopped):
                while self._running:
                    self._take_in()
            self._keep()

    def __call__(self, task: T) -> np.ndarray:
        """Latents of the next task."""
        while task.key not in self._made:
            assert self._batches or self._reading or self._running, "asked for a task of no group"
            self._advance()
        return self._made.pop(task.key)

    def sealed(self, keys: Iterable[str]) -> None:
        """These lie in a shard now; may be called from another thread."""
        for key in keys:
            self._unsealed.pop(key, None)

    def _advance(self) -> None:
        """Give the device one more batch if there is one; take the oldest back once enough are on their way."""
        self._read_ahead()
        if self._reading:
            self.check_stop()
            batch, audios = self._reading.popleft()
            self._running.append((batch, self.on_device.launch([audio.result() for audio in audios])))
            self._read_ahead()
        if self._running and (len(self._running) >= ON_THE_WAY or not self._reading):
            self._take_in()

    def _read_ahead(self) -> None:
        while self._batches and not self._enough():
            batch = self._batches.popleft()
            found = {task.key: self.pieces.find(task.key) for task in batch}
            # A batch is encoded again as a whole: in the same company its latents are the same to the bit.
            if any(frames is None for frames in found.values()):
                self._reading.append((batch, [self._pool.submit(self._read, task) for task in batch]))
            else:
                self._made.update({key: frames for key, frames in found.items() if frames is not None})

    def _enough(self) -> bool:
        tasks = [task for batch, _ in self._reading for task in batch]
        frames = sum(task.num_frames for task in tasks)
        return len(tasks) > self.readers or frames >= AHEAD_FRAMES * self.on_device.most_frames

    def _read(self, task: T) -> Tensor:
        room = self.on_device.room(task.shape)
        task.fill(room.numpy())
        return room

    def _take_in(self) -> None:
        """Wait for the oldest batch and note its latents."""
        batch, launched = self._running.popleft()
        latents = [latents_TC for part in launched for latents_TC in part.latents()]
        for task, latents_TC in zip(batch, latents, strict=True):
            self._made[task.key] = self._unsealed[task.key] = self.checked(task, latents_TC)
        if time.monotonic() - self._kept_at > KEEP_EVERY_SECONDS:
            self._keep()

    def _keep(self) -> None:
        """Put what no shard holds yet into files."""
        for key, frames in list(self._unsealed.items()):
            self.pieces.keep(key, frames)
            self._unsealed.pop(key, None)
        self._kept_at = time.monotonic()
