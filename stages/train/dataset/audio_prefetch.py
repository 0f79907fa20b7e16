"""Audio of the next steps, decoded by worker processes while the device works on the current one.

Workers only decode: what is read, and in which order, follows from the seed and the step, and encoding stays in the
main process. So results do not depend on how many workers there are, or on whether there are any.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType

import joblib
import numpy as np
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool

from stages.contract import Workspace
from stages.processes import can_start_workers, init_worker, sigint_blocked
from stages.train.dataset.batch import Batch
from stages.train.dataset.clips import LiveLatents
from stages.train.dataset.examples import Examples
from stages.train.dataset.sample_ranges import SampleRange, read_ranges

PREFETCH_BYTES = 512 << 20
"""Most samples decoded and not yet used, beside those of the next step."""
MAX_PROCESSES = 4
"""Workers unless a number is given: one decodes audio some hundred times faster than it plays."""
MIN_SECONDS_TO_PREFETCH = 1800.0
"""Audio to be decoded in all, below which starting a process takes longer than it saves."""
BYTES_PER_SAMPLE = 2 * 4
"""Two channels of float32."""


class AudioPrefetcher:
    """Batches of a training's steps, their audio decoded ahead by worker processes where that pays.

    Args:
        steps: to be made, in this order.
    """

    def __init__(self, examples: Examples, steps: range, work: Workspace) -> None:
        self.examples, self.steps, self.say = examples, steps, work.say
        self.num_processes = num_processes(examples, steps, work.resources.workers)
        self._pool: ProcessPoolExecutor | None = None
        self._pending: dict[int, tuple[list[SampleRange], Future[list[np.ndarray | None]] | None]] = {}
        self._next = steps.start
        """First step for which nothing is requested yet."""
        self._requested: set[tuple[int, bool]] = set()
        """Clips whose latents will be cached by the time they are needed again."""

    def __enter__(self) -> AudioPrefetcher:
        if self.num_processes > 0:
            # loky's own start method: processes are fresh on every system, and never run the main script again.
            self._pool = ProcessPoolExecutor(self.num_processes, initializer=init_worker, initargs=(os.getpid(),))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the worker processes, whatever they are doing: they only read."""
        self._pending.clear()
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.shutdown(wait=True, kill_workers=True)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0; any step may be asked for, the next ones are decoded ahead.

        Raises:
            PreparedAudioMissing: a clip's audio is gone or damaged.
        """
        clips = self.examples.clips
        if self._pool is None or not isinstance(clips, LiveLatents):
            return self.examples.batch(step)
        clips.prefetched = self.samples(step)
        try:
            return self.examples.batch(step)
        finally:
            clips.prefetched = {}

    def samples(self, step: int) -> Mapping[SampleRange, np.ndarray]:
        """Decoded samples of a step, without those that could not be read: reading them again raises the reason."""
        try:
            self.request_ahead(step)
            ranges, future = self._pending.pop(step, ([], None))
            found = [] if future is None else future.result()
        except BrokenProcessPool as error:
            self.say(f"a process that decodes audio ahead was killed ({error}); audio is now decoded as it is needed")
            self.close()
            return {}
        return {samples: audio for samples, audio in zip(ranges, found, strict=True) if audio is not None}

    def request_ahead(self, step: int) -> None:
        """Request the samples of a step, and of as many after it as may be held."""
        assert self._pool is not None
        for earlier in [known for known in self._pending if known < step]:
            del self._pending[earlier]
        self._next = max(self._next, step)
        while self._next in self.steps and (self._next == step or self.has_capacity()):
            ranges = self.ranges_to_read(self._next)
            with sigint_blocked():  # the pool starts its processes with the first task
                future = self._pool.submit(read_ranges, ranges) if ranges else None
            self._pending[self._next] = ranges, future
            self._next += 1

    def has_capacity(self) -> bool:
        """Whether a further step may be requested."""
        held = sum(samples.stop - samples.start for ranges, _ in self._pending.values() for samples in ranges)
        return held * BYTES_PER_SAMPLE < PREFETCH_BYTES and len(self._pending) <= 2 * self.num_processes

    def ranges_to_read(self, step: int) -> list[SampleRange]:
        """Samples that a step needs and that are not requested yet."""
        clips, excerpts = self.examples.clips, self.examples.excerpts(step)
        assert isinstance(clips, LiveLatents)
        wanted = []
        for index, start, flipped in zip(excerpts.clips, excerpts.starts, excerpts.flipped, strict=True):
            if (index, flipped) not in self._requested and not clips.is_cached(index, flipped):
                wanted.append(clips.sample_range(index, start))
            if clips.is_cacheable(index):
                self._requested.add((index, flipped))
        return list(dict.fromkeys(wanted))


def num_processes(examples: Examples, steps: range, requested: int) -> int:
    """How many processes decode ahead: none where nothing is decoded or none can be started, else as requested.

    Where 0 are requested: half of the cores and at most `MAX_PROCESSES`, if there is enough to decode; none on a single
    core.
    """
    if not isinstance(examples.clips, LiveLatents) or not can_start_workers():
        return 0
    if requested:
        return requested
    if seconds_to_decode(examples, steps) < MIN_SECONDS_TO_PREFETCH:
        return 0
    return min(MAX_PROCESSES, joblib.cpu_count() // 2)


def seconds_to_decode(examples: Examples, steps: range) -> float:
    """Rough duration of the audio that the steps decode: cached clips once per sign, crops of others at every visit."""
    clips = examples.clips
    assert isinstance(clips, LiveLatents)
    cached = np.array([clips.is_cacheable(index) for index in range(len(clips.sizes))])
    others = np.minimum(clips.sizes, clips.window)[~cached]
    visits = len(steps) * len(examples.excerpts(steps.start).clips)
    return float(2 * clips.sizes[cached].sum() + visits * others.sum() / len(cached)) / clips.sample_rate_hz
