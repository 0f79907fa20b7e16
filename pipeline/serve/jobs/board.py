"""The jobs in memory, of which status and streams are answered, and their log lines. Light: standard library only."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pipeline.serve.jobs.job import Job
from pipeline.serve.jobs.job_folder import JobFolder, timestamp
from pipeline.serve.jobs.queue import Database

_KEPT_FINISHED = 200


class Board:
    """Unfinished jobs, and the finished ones that were asked for last."""

    def __init__(self, database: Database, jobs_root: Path) -> None:
        self.database, self.jobs_root = database, jobs_root
        self.active: dict[str, Job] = {}
        """Queued and running jobs, in their order."""
        self._finished: OrderedDict[str, Job] = OrderedDict()
        self._changes: dict[str, asyncio.Event] = {}
        self._pending: dict[str, asyncio.Future[Job]] = {}

    def folder(self, job_id: str) -> JobFolder:
        """The folder of a job."""
        return JobFolder(self.jobs_root / job_id)

    async def restore(self) -> list[Job]:
        """Read the queue of an earlier server; the jobs whose webhook is still to be sent."""
        found = await self.database.run(self.database.unfinished)
        for job in found:
            self._begin_log(job)
            self.read_log(job)
        self.active = {job.id: job for job in found if not job.is_over}
        return [job for job in found if job.is_over]

    async def accept(self, job: Job) -> tuple[Job, bool]:
        """Put a job on disk, unless it is the retry of one that has not ended; the job, and whether it is new."""
        if (same := self.same_request(job)) is not None:
            return same, False
        if (pending := self._pending.get(job.request_digest)) is not None:
            return await asyncio.shield(pending), False
        accepted = self._pending[job.request_digest] = asyncio.get_running_loop().create_future()
        try:
            await self.database.run(self.database.insert, job)
        except BaseException as error:
            accepted.set_exception(error)
            with suppress(BaseException):
                accepted.exception()  # others may not be waiting
            raise
        finally:
            del self._pending[job.request_digest]
        self._begin_log(job)
        self.active[job.id] = job
        accepted.set_result(job)
        return job, True

    def same_request(self, job: Job) -> Job | None:
        """An unfinished job of the same request; one that is being cancelled does not count."""
        same = (one for one in self.active.values() if one.request_digest == job.request_digest)
        return next((one for one in same if not one.cancel_requested), None)

    async def find(self, job_id: str) -> Job | None:
        """A job by its id, from memory or from the disk."""
        found = self.active.get(job_id) or self._finished.get(job_id)
        if found is None:
            found = await self.database.run(self.database.find, job_id)
            if found is None:
                return None
            self._begin_log(found)
            self.read_log(found)
            self._remember(found)
        return found

    def move_to_finished(self, job: Job) -> None:
        """A job has its result; those that wait for it go on."""
        self.active.pop(job.id, None)
        self._remember(job)
        self.changed(job)

    def forget(self, job_id: str) -> None:
        """A job was removed."""
        self._finished.pop(job_id, None)

    def _remember(self, job: Job) -> None:
        self._finished[job.id] = job
        while len(self._finished) > _KEPT_FINISHED:
            self._finished.popitem(last=False)

    def position(self, job: Job) -> int:
        """How many queued jobs are before this one."""
        return sum(1 for other in self.queued() if order(other) < order(job))

    def queued(self) -> list[Job]:
        """Jobs that wait, in the order in which they will start."""
        return sorted((job for job in self.active.values() if job.state == "queued"), key=order)

    def running(self) -> list[Job]:
        """Jobs at work."""
        return [job for job in self.active.values() if job.state == "running"]

    def changed(self, job: Job) -> None:
        """Wake those that wait for a change of a job."""
        job.changed += 1
        event = self._changes.pop(job.id, None)
        if event is not None:
            event.set()

    async def wait_for_change(self, job: Job, seconds: float) -> None:
        """Return at the next change of a job, or after a time."""
        event = self._changes.setdefault(job.id, asyncio.Event())
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)

    def _begin_log(self, job: Job) -> None:
        """The lines that the server itself has to say."""
        moment = timestamp() if not job.created else _iso(job.created)
        for note in job.notes:
            level = "WARN" if note.startswith("warning:") else "INFO"
            job.add_line({"message": note, "level": level, "timestamp": moment})

    def read_log(self, job: Job) -> None:
        """Read what was added to a job's log; an unfinished last line waits."""
        lines = _new_lines(job, self.folder(job.id).log)
        for line in lines:
            job.add_line(line)
        if lines:
            self.changed(job)


def order(job: Job) -> tuple[bool, int]:
    """Sort key of the queue: low priority comes last."""
    return job.low_priority, job.number


def _new_lines(job: Job, log: Path) -> list[dict[str, object]]:
    try:
        with log.open("rb") as file:
            file.seek(job.log_offset)
            content = file.read()
    except OSError:
        return []
    whole, _, _ = content.rpartition(b"\n")
    if not whole:
        return []
    job.log_offset += len(whole) + 1
    return list(_objects(whole.split(b"\n")))


def _objects(lines: Iterable[bytes]) -> Iterable[dict[str, object]]:
    for line in lines:
        with suppress(ValueError):  # half a line of a writer that was killed
            if isinstance(found := json.loads(line), dict):
                yield found


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(seconds))
