"""Clips prepared side by side by joblib: names go out, facts come back, and no sound travels between processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from importlib import import_module

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool, ShutdownExecutorError

from stages.contract import Resources
from stages.errors import EngineUnavailable, Fault, StageError
from stages.ingest.audio.mpeg_decoder import start_decoder
from stages.ingest.file_types import suffix
from stages.ingest.prepare_clip import MOMENT_SECONDS, Interrupted, Job, Prepared, prepare
from stages.processes import init_worker, sigint_blocked

Result = tuple[Job, tuple[Prepared, ...] | Fault]
_BYTES_WORTH_A_PROCESS = 64 << 20
"""Source bytes that keep one process about as busy as starting it takes."""


def results(
    jobs: Sequence[Job], resources: Resources, should_stop: Callable[[], bool]
) -> Generator[Result, None, None]:
    """Every job with what came of it, as they finish. Once asked to stop no further job is begun.

    Raises:
        StageError: a worker died, or could not write.
    """
    number = num_workers(jobs, resources)
    if number == 1 and resources.engine in ("loky", "threading"):
        if any(suffix(job.member.name) == ".mp3" for job in jobs):
            start_decoder()
        for job in _until(should_stop, jobs):
            try:
                yield _done(job, should_stop)
            except Interrupted:
                return
    elif jobs:
        yield from _side_by_side(jobs, number, resources.engine, should_stop)


def num_workers(jobs: Sequence[Job], resources: Resources) -> int:
    """As many as asked for; unasked, one per core, as far as there is work to share."""
    if resources.workers:
        return max(1, min(resources.workers, len(jobs)))
    worth = sum(job.member.num_bytes for job in jobs) // _BYTES_WORTH_A_PROCESS
    return max(1, min(joblib.cpu_count(), worth, len(jobs)))


def _until(should_stop: Callable[[], bool], jobs: Sequence[Job]) -> Iterator[Job]:
    for job in jobs:
        if should_stop():
            return
        yield job


def _side_by_side(
    jobs: Sequence[Job], number: int, engine: str, should_stop: Callable[[], bool]
) -> Generator[Result, None, None]:
    _ready(engine)
    asked = {"should_stop": should_stop} if engine == "threading" else {}
    calls = (joblib.delayed(_done)(job, **asked) for job in _until(should_stop, jobs))
    # joblib's ray backend cannot hand results over one by one.
    return_as = "list" if engine == "ray" else "generator_unordered"
    own_processes = {"initializer": init_worker, "initargs": (os.getpid(),)} if engine == "loky" else {}
    side_by_side = joblib.Parallel(
        n_jobs=number, backend=engine, return_as=return_as, pre_dispatch=number + 1, batch_size=1, **own_processes
    )
    watch = Watch(should_stop) if engine == "loky" else nullcontext()
    try:
        with sigint_blocked():
            done = side_by_side(calls)
        with watch:
            yield from done
    except Interrupted:
        return
    except (RuntimeError, MemoryError) as error:
        if not _is_lost_worker(error):
            raise
        if should_stop():
            # It took too long over what it had begun, or was still starting when a terminal's Ctrl-C reached it.
            return
        raise StageError(
            f"a worker of ingest was killed or ran out of memory ({type(error).__name__}). Finished clips are kept. "
            f"Run the same command again with fewer processes, such as --workers {max(1, number // 2)}."
        ) from error
    finally:
        if engine == "loky":
            get_reusable_executor(reuse=True).shutdown(wait=True)


def _is_lost_worker(error: Exception) -> bool:
    """Whether a worker died or was ended, in any of the forms joblib and loky give that."""
    return isinstance(error, BrokenProcessPool | ShutdownExecutorError | MemoryError) or "executor" in str(error)


class Watch:
    """While it lasts, ends workers that go on for more than a moment after a stop was asked for.

    A worker has nothing to lose: what it writes appears whole or not at all.
    """

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _wait(self) -> None:
        while not self._over.wait(0.1):
            if self._should_stop():
                if not self._over.wait(MOMENT_SECONDS):
                    get_reusable_executor(reuse=True).shutdown(wait=False, kill_workers=True)
                return


def _done(job: Job, should_stop: Callable[[], bool] = lambda: False) -> Result:
    return job, prepare(job, should_stop)


def _ready(engine: str) -> None:
    """Start what a joblib backend beyond joblib's own needs."""
    try:
        if engine == "dask":
            import_module("distributed").get_client()
        elif engine == "ray":
            import_module("ray.util.joblib").register_ray()
    except ImportError as error:
        package = {"dask": "dask[distributed]", "ray": "ray"}[engine]
        remedy = f"Install it with `pip install '{package}'`"
        raise EngineUnavailable(engine, f"{error.name} is not installed", remedy) from error
    except ValueError as error:
        raise EngineUnavailable(engine, str(error), "Start a cluster and connect a distributed.Client first") from error
