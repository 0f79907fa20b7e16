"""Prepares clips in parallel through joblib. Workers are sent paths and return facts; no samples are transferred."""

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
from stages.ingest.prepare_clip import GRACE_SECONDS, Interrupted, PreparedClip, RecordingJob, prepare
from stages.processes import can_start_workers, init_worker, sigint_blocked

Result = tuple[RecordingJob, tuple[PreparedClip, ...] | Fault]
_BYTES_PER_WORKER = 64 << 20
"""Source bytes whose preparation takes about as long as starting a process."""


def results(
    jobs: Sequence[RecordingJob], resources: Resources, should_stop: Callable[[], bool]
) -> Generator[Result, None, None]:
    """Every job with its result, as they finish. Once a stop is requested no further job is started.

    Raises:
        StageError: a worker died, or could not write.
    """
    number, engine = num_workers(jobs, resources), resources.engine
    if engine == "loky" and number > 1 and not can_start_workers():
        engine = "threading"  # as joblib itself falls back, with a warning
    if number == 1 and engine in ("loky", "threading"):
        if any(suffix(job.member.name) == ".mp3" for job in jobs):
            start_decoder()
        for job in _not_stopped(should_stop, jobs):
            try:
                yield _run_job(job, should_stop)
            except Interrupted:
                return
    elif jobs:
        yield from _run_parallel(jobs, number, engine, should_stop)


def num_workers(jobs: Sequence[RecordingJob], resources: Resources) -> int:
    """Number of workers: as requested, else one per core, fewer where there is little work; never more than jobs."""
    if resources.workers:
        return max(1, min(resources.workers, len(jobs)))
    worthwhile = sum(job.member.num_bytes for job in jobs) // _BYTES_PER_WORKER
    return max(1, min(joblib.cpu_count(), worthwhile, len(jobs)))


def _not_stopped(should_stop: Callable[[], bool], jobs: Sequence[RecordingJob]) -> Iterator[RecordingJob]:
    for job in jobs:
        if should_stop():
            return
        yield job


def _run_parallel(
    jobs: Sequence[RecordingJob], number: int, engine: str, should_stop: Callable[[], bool]
) -> Generator[Result, None, None]:
    _start_backend(engine)
    shared = {"should_stop": should_stop} if engine == "threading" else {}
    calls = (joblib.delayed(_run_job)(job, **shared) for job in _not_stopped(should_stop, jobs))
    # joblib's ray backend cannot return results one by one.
    return_as = "list" if engine == "ray" else "generator_unordered"
    own_processes = {"initializer": init_worker, "initargs": (os.getpid(),)} if engine == "loky" else {}
    parallel = joblib.Parallel(
        n_jobs=number, backend=engine, return_as=return_as, pre_dispatch=number + 1, batch_size=1, **own_processes
    )
    watchdog = StopWatchdog(should_stop) if engine == "loky" else nullcontext()
    try:
        with sigint_blocked():
            finished = parallel(calls)
        with watchdog:
            yield from finished
    except Interrupted:
        return
    except (RuntimeError, MemoryError) as error:
        if not _is_lost_worker(error):
            raise
        if should_stop():
            # The watchdog ended it, or a terminal's Ctrl-C reached it while it was still starting.
            return
        raise StageError(
            f"a worker of ingest was killed or ran out of memory ({type(error).__name__}). Finished clips are kept. "
            f"Run the same command again with fewer processes, such as --workers {max(1, number // 2)}."
        ) from error
    finally:
        if engine == "loky":
            get_reusable_executor(reuse=True).shutdown(wait=True)


def _is_lost_worker(error: Exception) -> bool:
    """Whether a worker died or was ended, in any of the forms in which joblib and loky report that."""
    return isinstance(error, BrokenProcessPool | ShutdownExecutorError | MemoryError) or "executor" in str(error)


class StopWatchdog:
    """Context that kills workers which are still busy GRACE_SECONDS after a stop was requested.

    Killing is safe: the files that workers write appear whole or not at all.
    """

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._finished.set()
        self._thread.join()

    def _wait(self) -> None:
        while not self._finished.wait(0.1):
            if self._should_stop():
                if not self._finished.wait(GRACE_SECONDS):
                    get_reusable_executor(reuse=True).shutdown(wait=False, kill_workers=True)
                return


def _run_job(job: RecordingJob, should_stop: Callable[[], bool] = lambda: False) -> Result:
    return job, prepare(job, should_stop)


def _start_backend(engine: str) -> None:
    """Connect or register the joblib backends that joblib does not include: dask and ray."""
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
