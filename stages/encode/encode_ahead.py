"""Encodes clips some batches ahead of their consumer: threads decode the audio, the device encodes it.

The next shard's batches start without waiting for the shard before, which is written while they are encoded.
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
from stages.encode.device_batches import DeviceEncoder, PendingBatch
from stages.encode.partial_shards import PartialLatents
from stages.errors import Stopped

BATCHES_READ_AHEAD = 4
"""Most batches whose audio is read ahead; fewer where fewer clips keep every reader busy."""
MAX_READERS = 16
MAX_BATCHES_IN_FLIGHT = 2
"""Batches launched on the device whose latents are not collected yet: it always has the next one queued."""
SAVE_INTERVAL_SECONDS = 10.0
"""How often latents that are in no shard yet are saved to files, in case the run is killed."""


class AudioTask(Protocol):
    """A clip to be encoded: its key, its lengths, and how to read its audio."""

    @property
    def key(self) -> str: ...

    @property
    def num_frames(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def fill(self) -> Callable[[np.ndarray], None]: ...


T = TypeVar("T", bound=AudioTask)
Reading = tuple[list[T], list[Future[Tensor]]]
InFlight = tuple[list[T], list[PendingBatch]]


def num_readers(requested: int) -> int:
    """Number of decoding threads: as requested, else one per core. The decoder releases Python's lock."""
    return requested or max(2, min(MAX_READERS, os.cpu_count() or 1))


class EncodeAhead(Generic[T]):
    """Callable that returns the latents of one task after the other, in the order of the groups.

    As a context it ends its threads; if it is left by an error or a stop, finished latents are saved to files.

    Args:
        groups: the tasks of each shard; a batch has tasks of one group only.
        checked: (task, latents) -> the latents to be stored; raises if they cannot be stored.
        check_stop: called before every batch; raises Stopped.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[T]],
        encoder: DeviceEncoder,
        partial: PartialLatents,
        readers: int,
        checked: Callable[[T, np.ndarray], np.ndarray],
        check_stop: Callable[[], None],
    ) -> None:
        self.encoder, self.partial, self.checked, self.check_stop = encoder, partial, checked, check_stop
        self.readers = readers
        silence = encoder.encoder.silence_frames
        self._batches = deque(
            [group[index] for index in batch]
            for group in groups
            for batch in batches_of([task.num_frames + silence for task in group], encoder.max_frames)
        )
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="reader")
        self._reading: deque[Reading[T]] = deque()
        self._in_flight: deque[InFlight[T]] = deque()
        self._finished: dict[str, np.ndarray] = {}
        self._unsealed: dict[str, np.ndarray] = {}
        self._saved_at = time.monotonic()

    def __enter__(self) -> EncodeAhead[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if kind is not None:
            if issubclass(kind, Stopped):
                while self._in_flight:
                    self._collect()
            self._save_unsealed()

    def __call__(self, task: T) -> np.ndarray:
        """The latents of the next task."""
        while task.key not in self._finished:
            assert self._batches or self._reading or self._in_flight, "the task is in no group"
            self._advance()
        return self._finished.pop(task.key)

    def sealed(self, keys: Iterable[str]) -> None:
        """Note that these are in a shard now; may be called from another thread."""
        for key in keys:
            self._unsealed.pop(key, None)

    def _advance(self) -> None:
        """Launch one more batch if there is one; collect the oldest once enough are in flight."""
        self._read_ahead()
        if self._reading:
            self.check_stop()
            batch, audios = self._reading.popleft()
            self._in_flight.append((batch, self.encoder.launch([audio.result() for audio in audios])))
            self._read_ahead()
        if self._in_flight and (len(self._in_flight) >= MAX_BATCHES_IN_FLIGHT or not self._reading):
            self._collect()

    def _read_ahead(self) -> None:
        while self._batches and not self._enough_read():
            batch = self._batches.popleft()
            found = {task.key: self.partial.load(task.key) for task in batch}
            # A batch is encoded again as a whole: only in the same batch are latents the same to the bit.
            if any(frames is None for frames in found.values()):
                self._reading.append((batch, [self._pool.submit(self._read, task) for task in batch]))
            else:
                self._finished.update({key: frames for key, frames in found.items() if frames is not None})

    def _enough_read(self) -> bool:
        tasks = [task for batch, _ in self._reading for task in batch]
        frames = sum(task.num_frames for task in tasks)
        return len(tasks) > self.readers or frames >= BATCHES_READ_AHEAD * self.encoder.max_frames

    def _read(self, task: T) -> Tensor:
        buffer = self.encoder.host_buffer(task.shape)
        task.fill(buffer.numpy())
        return buffer

    def _collect(self) -> None:
        """Wait for the oldest batch and collect its latents."""
        batch, launched = self._in_flight.popleft()
        latents = [latents_TC for part in launched for latents_TC in part.latents()]
        for task, latents_TC in zip(batch, latents, strict=True):
            self._finished[task.key] = self._unsealed[task.key] = self.checked(task, latents_TC)
        if time.monotonic() - self._saved_at > SAVE_INTERVAL_SECONDS:
            self._save_unsealed()

    def _save_unsealed(self) -> None:
        """Save the latents that are in no shard yet to files."""
        for key, frames in list(self._unsealed.items()):
            self.partial.save(key, frames)
            self._unsealed.pop(key, None)
        self._saved_at = time.monotonic()
