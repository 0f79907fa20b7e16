"""Samples of the next steps, read by other processes while the device works on this one.

Only decoding is done elsewhere: what is read and in which order follows from the seed and the step, and encoding stays
where the autoencoder is. So results do not depend on how many processes read, or on whether they do.
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
from stages.processes import init_worker, sigint_blocked
from stages.train.dataset.batch import Batch
from stages.train.dataset.clips import LiveLatents
from stages.train.dataset.examples import Examples
from stages.train.dataset.sample_ranges import SampleRange, read_ranges

PREFETCH_BYTES = 512 << 20
"""Samples read and not yet used, at most, beside those of the next step."""
MAX_PROCESSES = 4
"""Unasked: one decodes audio some hundred times faster than it plays."""
MIN_SECONDS_TO_PREFETCH = 1800.0
"""Of audio to be read in all, below which starting a process takes longer than it saves."""
BYTES_PER_SAMPLE = 2 * 4


class AudioPrefetcher:
    """Batches of a training's steps, made in order, on processes that read ahead; none where that is not worth it.

    Args:
        steps: that are to be made.
    """

    def __init__(self, examples: Examples, steps: range, work: Workspace) -> None:
        self.examples, self.steps, self.say = examples, steps, work.say
        self.num_processes = num_processes(examples, steps, work.resources.workers)
        self._pool: ProcessPoolExecutor | None = None
        self._reading: dict[int, tuple[list[SampleRange], Future[list[np.ndarray | None]] | None]] = {}
        self._next = steps.start
        """First step for which nothing is asked yet."""
        self._asked: set[tuple[int, bool]] = set()
        """Clips whose latents will be kept by the time they are needed again."""

    def __enter__(self) -> AudioPrefetcher:
        if self.num_processes > 0:
            # A start method of loky's own: processes begin anew everywhere, and never run the main script again.
            self._pool = ProcessPoolExecutor(self.num_processes, initializer=init_worker, initargs=(os.getpid(),))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, whatever they are doing: they only read."""
        self._reading.clear()
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.shutdown(wait=True, kill_workers=True)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0; any may be asked for, the next ones are at hand.

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
        """What was read for a step; what could not be is left out, so that reading it again here says why."""
        try:
            self.request_ahead(step)
            stretches, reading = self._reading.pop(step, ([], None))
            found = [] if reading is None else reading.result()
        except BrokenProcessPool as error:
            self.say(f"a process that reads ahead was killed ({error}); audio is read as it is needed from now on")
            self.close()
            return {}
        return {stretch: audio for stretch, audio in zip(stretches, found, strict=True) if audio is not None}

    def request_ahead(self, step: int) -> None:
        """Ask for the samples of a step and of as many after it as may be held."""
        assert self._pool is not None
        for earlier in [known for known in self._reading if known < step]:
            del self._reading[earlier]
        self._next = max(self._next, step)
        while self._next in self.steps and (self._next == step or self.has_room()):
            stretches = self.missing(self._next)
            with sigint_blocked():  # the pool starts its processes with what it is first given
                reading = self._pool.submit(read_ranges, stretches) if stretches else None
            self._reading[self._next] = stretches, reading
            self._next += 1

    def has_room(self) -> bool:
        """Whether a further step may be read."""
        held = sum(stretch.stop - stretch.start for stretches, _ in self._reading.values() for stretch in stretches)
        return held * BYTES_PER_SAMPLE < PREFETCH_BYTES and len(self._reading) <= 2 * self.num_processes

    def missing(self, step: int) -> list[SampleRange]:
        """Samples that a step needs and nobody has asked for."""
        clips, chosen = self.examples.clips, self.examples.excerpts(step)
        assert isinstance(clips, LiveLatents)
        wanted = []
        for index, start, flipped in zip(chosen.clips, chosen.starts, chosen.flipped, strict=True):
            if (index, flipped) not in self._asked and not clips.has(index, flipped):
                wanted.append(clips.sample_range(index, start))
            if clips.keeps(index):
                self._asked.add((index, flipped))
        return list(dict.fromkeys(wanted))


def num_processes(examples: Examples, steps: range, asked: int) -> int:
    """How many processes read ahead: none where nothing is decoded, else those asked for.

    Unasked, half of the cores and at most `MAX_PROCESSES`, if there is enough to read; none on a single core.
    """
    if not isinstance(examples.clips, LiveLatents):
        return 0
    if asked:
        return asked
    if seconds_to_read(examples, steps) < MIN_SECONDS_TO_PREFETCH:
        return 0
    return min(MAX_PROCESSES, joblib.cpu_count() // 2)


def seconds_to_read(examples: Examples, steps: range) -> float:
    """Audio that the steps decode, about: kept clips once with each sign, crops of the others at every visit."""
    clips = examples.clips
    assert isinstance(clips, LiveLatents)
    kept = np.array([clips.keeps(index) for index in range(len(clips.sizes))])
    others = np.minimum(clips.sizes, clips.window)[~kept]
    visits = len(steps) * len(examples.excerpts(steps.start).clips)
    return float(2 * clips.sizes[kept].sum() + visits * others.sum() / len(kept)) / clips.sample_rate_hz
