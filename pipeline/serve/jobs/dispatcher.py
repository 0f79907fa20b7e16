"""Gives queued jobs to devices, watches their workers, and ends them: by result, cancellation, time-out or silence.

Light: standard library only.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pipeline.serve.jobs.board import Board
from pipeline.serve.jobs.commands import spec_of
from pipeline.serve.jobs.job import FINISHED, QUEUED, RUNNING, Job
from pipeline.serve.jobs.results import Ending, cancelled, ending_of, lost, not_run, not_started, stalled
from pipeline.serve.settings import Settings

_POLL_SECONDS = 0.2
_RETRY_SECONDS = 2.0
_MOST_ATTEMPTS = 5
"""Of workers that vanish; a restart of the server counts as none."""
STORE_LANE = "store"
"""Where a job goes first whose input was answered before: the store needs no device."""


class Dispatcher:
    """Runs the jobs of a board, one worker per device."""

    def __init__(
        self, board: Board, settings: Settings, address: Callable[[Job, str, str], str], ended: Callable[[Job], None]
    ) -> None:
        """`address`: of a file of a job's result; `ended` is called with every job that has its result."""
        self.board, self.settings, self.address, self.ended = board, settings, address, ended
        self.free = [*settings.devices, STORE_LANE]
        self.wake = asyncio.Event()
        self.stopping = False
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._twins: set[str] = set()
        """Queued jobs whose input was answered before."""
        self._ending: set[str] = set()
        """Jobs whose results are being written."""

    async def resume(self) -> None:
        """Go on with the jobs that ran when the server ended."""
        for job in self.board.running():
            job.attempts = min(job.attempts, 1)
            device = job.device if job.device in self.free else None
            if device is None:  # the server was started with other devices
                device = next(iter(self.free[:-1]), job.device or self.settings.devices[0])
            with suppress(ValueError):
                self.free.remove(device)
            self._watch(job, device)

    async def run(self) -> None:
        """Start jobs as devices become free, until cancelled."""
        while True:
            self.wake.clear()
            try:
                await self._expire()
                await self._start_queued()
            except (OSError, sqlite3.Error) as error:  # a full disk: it may have room again
                _complain("jobs cannot be started", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), 1.0)

    async def submitted(self, job: Job) -> None:
        """A job was accepted."""
        if job.input_digest and job.kind == "train":
            twin = await self.board.database.run(self.board.database.finished_twin, job.input_digest)
            if twin is not None:
                self._twins.add(job.id)
        self.wake.set()

    async def cancel(self, job: Job) -> None:
        """Remove a queued job; ask the worker of a running one to end."""
        job.cancel_requested = True
        if job.state == QUEUED:
            await self._finish(job, cancelled())
        else:
            await self.board.database.run(self.board.database.update, job, "cancel_requested")
        self.board.changed(job)

    async def stop(self, seconds: float) -> None:
        """Let every worker save its state and end; the next server goes on with their jobs."""
        self.stopping = True
        if self._watchers:
            await asyncio.wait(self._watchers.values(), timeout=seconds)
        for task in self._watchers.values():
            task.cancel()

    async def _expire(self) -> None:
        """End queued jobs that have waited longer than their callers allow."""
        for job in self.board.queued():
            if job.start_seconds is not None and time.time() - job.created > job.start_seconds:
                await self._finish(job, not_started(job.start_seconds))

    async def _start_queued(self) -> None:
        for job in self.board.queued():
            if job.state != QUEUED or job.id in self._ending:  # cancelled while another was started
                continue
            if job.id in self._twins and STORE_LANE in self.free:
                await self._begin(job, STORE_LANE)
            elif job.id not in self._twins and self.free and self.free[0] != STORE_LANE:
                await self._begin(job, self.free[0])

    async def _begin(self, job: Job, device: str) -> None:
        """Record that a job runs, then start its worker."""
        self.free.remove(device)
        job.state, job.started, job.device = RUNNING, job.started or time.time(), device
        await self.board.database.run(self.board.database.update, job, "state", "started", "device")
        self.board.changed(job)
        self._watch(job, device)

    def _watch(self, job: Job, device: str) -> None:
        task = asyncio.get_running_loop().create_task(self._watched_to_an_end(job, device))
        self._watchers[job.id] = task
        task.add_done_callback(lambda _: self._released(job, device))

    def _released(self, job: Job, device: str) -> None:
        """A watcher ended: its device is free."""
        self._watchers.pop(job.id, None)
        if device == STORE_LANE:
            self.free.append(device)
        elif device not in self.free and device in self.settings.devices:
            self.free.insert(0, device)
        self.wake.set()

    async def _watched_to_an_end(self, job: Job, device: str) -> None:
        """Run a job; a failure of this server itself ends that job with an error, and nothing else."""
        try:
            await self._watched(job, device)
        except Exception as error:
            _complain(f"request {job.id} cannot be run", error)
            why = error.strerror if isinstance(error, OSError) else type(error).__name__
            await self._finish(job, not_run(str(why)))

    async def _watched(self, job: Job, device: str) -> None:
        """Run a job's worker to its end, starting it again where it vanished."""
        folder = self.board.folder(job.id)
        while True:
            process = None
            if not folder.is_at_work() and (ended := folder.exit()) is None:
                if job.attempts >= _MOST_ATTEMPTS:
                    return await self._finish(job, lost(job.attempts))
                process = await self._started(job, device)
            ending = await self._until_end(job, process)
            self.board.read_log(job)
            ended = folder.exit()
            if ending is not None or (job.cancel_requested and not folder.is_at_work()):
                return await self._finish(job, ending or cancelled())
            if ended is None:
                continue
            if ended["stopped"]:
                if self.stopping:
                    return None
                (folder.root / "exit.json").unlink(missing_ok=True)
                continue
            if ended.get("not_stored"):
                return await self._back_in_queue(job)
            return await self._finish(job, ending_of(job, folder, ended["code"], self._address_in(job)))

    def _address_in(self, job: Job) -> Callable[[str, str], str]:
        return lambda id, name: self.address(job, id, name)

    async def _back_in_queue(self, job: Job) -> None:
        """The store does not hold the result any more: a device must make it."""
        self._twins.discard(job.id)
        (self.board.folder(job.id).root / "exit.json").unlink(missing_ok=True)
        job.state, job.attempts = QUEUED, 0
        await self.board.database.run(self.board.database.update, job, "state", "attempts")
        self.board.changed(job)

    async def _started(self, job: Job, device: str) -> subprocess.Popen[bytes]:
        """Start a job's worker."""
        folder = self.board.folder(job.id)
        if job.attempts:
            folder.append_log("going on where the process of this request stopped")
        job.attempts += 1
        await self.board.database.run(self.board.database.update, job, "attempts")
        in_store = device == STORE_LANE
        if in_store and job.attempts == 1:
            folder.root.mkdir(parents=True, exist_ok=True)
            folder.append_log("the same request was answered before: its result is looked up in the store")
        name = self.settings.devices[0] if in_store else device
        spec = spec_of(job, folder, self.settings, name, only_if_stored=in_store)
        folder.write_spec(spec)
        command = [sys.executable, "-m", "pipeline.serve.jobs.worker", str(folder.root)]
        with (folder.root / "worker.log").open("ab") as output:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    async def _until_end(self, job: Job, process: subprocess.Popen[bytes] | None) -> Ending | None:
        """Wait until a job's worker has ended; the ending is given only where the server ended it."""
        folder, silent_since, told = self.board.folder(job.id), time.monotonic(), None
        while process.poll() is None if process is not None else folder.is_at_work():
            await asyncio.sleep(_POLL_SECONDS)
            lines = job.num_logged
            self.board.read_log(job)
            if job.num_logged != lines:
                silent_since = time.monotonic()
            if job.cancel_requested or self.stopping:
                told = self._press(job, told)
            elif time.monotonic() - silent_since > self.settings.limits.stall_seconds:
                folder.send(signal.SIGKILL)
                return stalled(self.settings.limits.stall_seconds)
        while folder.is_at_work():  # the worker was killed, and its command goes on
            await asyncio.sleep(_POLL_SECONDS)
            self.board.read_log(job)
            if job.cancel_requested:
                told = self._press(job, told)
        return None

    def _press(self, job: Job, told: float | None) -> float | None:
        """Ask a cancelled worker to end, and kill it when its time is over; when it was first asked."""
        folder = self.board.folder(job.id)
        if told is None:
            return time.monotonic() if folder.send(signal.SIGTERM) else None
        if job.cancel_requested and time.monotonic() - told > self.settings.limits.cancel_seconds:
            folder.send(signal.SIGKILL)
        return told

    async def _finish(self, job: Job, ending: Ending) -> None:
        """Put the result on disk, then show it."""
        if job.id in self._ending:
            return
        self._ending.add(job.id)
        fields: dict[str, Any] = {"state": FINISHED, "finished": time.time(), "status_code": ending.status}
        fields |= {"result": ending.body, "error": ending.error, "error_type": ending.error_type}
        fields |= {"webhook_state": "pending" if job.webhook else ""}
        await self._written(replace(job, **fields), *fields, "cancel_requested")
        for name, value in fields.items():
            setattr(job, name, value)
        self._ending.discard(job.id)
        self._twins.discard(job.id)
        self.board.move_to_finished(job)
        self.ended(job)

    async def _written(self, job: Job, *names: str) -> None:
        """Write fields of a job, trying until the disk takes them."""
        while True:
            try:
                return await self.board.database.run(self.board.database.update, job, *names)
            except sqlite3.Error as error:
                _complain(f"the end of request {job.id} cannot be written yet", error)
                await asyncio.sleep(_RETRY_SECONDS)


def _complain(what: str, error: Exception) -> None:
    """Tell the person who started the server."""
    print(f"error: {what} ({error or type(error).__name__})", file=sys.stderr, flush=True)
