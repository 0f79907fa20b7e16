"""What the routes share: the queue, the files, the dispatcher and the webhooks of one server.

Light: no arrays; starlette only.
"""

from __future__ import annotations

import asyncio
import shutil
import time
import uuid
from collections import Counter
from functools import partial
from pathlib import Path

from starlette.requests import Request

from pipeline.serve.addresses import Signer
from pipeline.serve.errors import Refused, invalid, refusal
from pipeline.serve.files import Files
from pipeline.serve.jobs.board import Board
from pipeline.serve.jobs.dispatcher import Dispatcher
from pipeline.serve.jobs.job import Job
from pipeline.serve.jobs.queue import Database
from pipeline.serve.jobs.webhooks import Webhooks, wrong_address
from pipeline.serve.settings import Settings
from pipeline.serve.sources import Sources
from pipeline.serve.submission import (
    PLAYER,
    TRAINER,
    Submission,
    generation,
    parsed_body,
    player_endpoints,
    request_digest,
    training,
)

_STOP_SECONDS = 20.0
_CLEAN_EVERY_SECONDS = 3600.0


class Door:
    """One server's parts, made before it answers and ended after it."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.counts, self.began = settings, Counter[int](), time.time()
        self.database = Database(settings.state / "queue.sqlite")
        self.signer = Signer(self.database.secret("addresses"))
        self.webhook_secret = self.database.secret("webhooks")
        self.files = Files(self.database, settings.state, settings.limits)
        self.board = Board(self.database, settings.state / "jobs")
        self.webhooks = Webhooks(self.database, self.webhook_secret, allow_private=settings.allow_private)
        self.dispatcher = Dispatcher(self.board, settings, self.file_address, self._ended)
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Go on with the queue of the server before."""
        for job in await self.board.restore():
            self.webhooks.send(job)
        await self.dispatcher.resume()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self.dispatcher.run()), loop.create_task(self._clean_regularly())]

    async def close(self) -> None:
        """Let the workers save their states."""
        for task in self._tasks:
            task.cancel()
        await self.dispatcher.stop(_STOP_SECONDS)
        self.webhooks.close()
        self.database.close()

    def _ended(self, job: Job) -> None:
        if job.webhook:
            self.webhooks.send(job)

    def base_url(self, request: Request) -> str:
        """Address of this server as the caller sees it."""
        return (self.settings.public_url or str(request.base_url)).rstrip("/")

    def file_address(self, job: Job, id: str, name: str) -> str:
        """Address of a file of a job's result."""
        return f"{job.base_url}{self.signer.file_path(id, name)}"

    async def job_of(self, request: Request) -> Job:
        """The job that a request's path names, if it is the caller's. Raises: Refused."""
        job = await self.board.find(request.path_params["id"])
        app = f"{request.path_params['owner']}/{request.path_params['alias']}"
        if job is None or job.owner != request.state.owner or job.app != app:
            raise Refused(404, {"detail": "there is no such request", "status": "NOT_FOUND", "message": "not found"})
        request.state.request_id = job.id
        return job

    async def body_of(self, request: Request) -> bytes:
        """The body of a request. Raises: Refused, where it is too large."""
        limit, parts, num_bytes = self.settings.limits.body_bytes, [], 0
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > limit:
                raise refusal(413, f"a body may have {limit:,} bytes; upload the file and send its address")
            parts.append(chunk)
        return b"".join(parts)

    async def accepted(self, request: Request, path: str) -> Job:
        """Check a request and put it into the queue; a retried submit gives the job of the first. Raises: Refused."""
        app = self._app(path)
        base_url, owner = self.base_url(request), request.state.owner
        webhook = request.query_params.get("fal_webhook") or None
        raw = await self.body_of(request)
        if webhook is not None and (wrong := wrong_address(webhook)):
            raise invalid([{"loc": ["query", "fal_webhook"], "type": "url_parsing", "msg": wrong}], base_url)
        submission = await asyncio.to_thread(self._submission, path, raw, base_url, owner, asyncio.get_running_loop())
        job = Job(
            id=str(uuid.uuid4()),
            app=app,
            kind=submission.kind,
            owner=owner,
            request_digest=request_digest(owner, path, raw, webhook),
            input_digest=submission.input_digest,
            task=submission.task,
            base_url=base_url,
            notes=submission.notes,
            webhook=webhook,
            low_priority=request.headers.get("x-fal-queue-priority", "").lower() == "low",
            start_seconds=_start_seconds(request),
            created=time.time(),
        )
        self._check_quota(job)
        job, is_new = await self.board.accept(job)
        if is_new:
            await self.dispatcher.submitted(job)
        request.state.request_id = job.id
        return job

    def _check_quota(self, job: Job) -> None:
        """Raise Refused where an owner has too many jobs in the queue."""
        waiting = sum(1 for other in self.board.queued() if other.owner == job.owner)
        if waiting >= self.settings.limits.queued_jobs and self.board.same_request(job) is None:
            raise refusal(
                403, f"{waiting} requests of this key are waiting already; wait for one of them", "queue_full"
            )

    def _app(self, path: str) -> str:
        """The application of an endpoint. Raises: Refused, for an unknown one."""
        if path == TRAINER:
            return TRAINER
        if path.removeprefix(f"{PLAYER}/") in player_endpoints() and path.startswith(f"{PLAYER}/"):
            return PLAYER
        raise refusal(404, f"there is no application {path[:200]}; this server has {TRAINER}", "not_found")

    def _submission(
        self, path: str, raw: bytes, base_url: str, owner: str, loop: asyncio.AbstractEventLoop
    ) -> Submission:
        """The checked request; runs in a thread, as a body may be large."""
        sources = Sources(
            settings=self.settings,
            signer=self.signer,
            base_url=base_url,
            file_of=partial(self._file_of, loop),
            store_data=partial(self._store_data, loop, owner),
        )
        body = parsed_body(raw, base_url)
        if path == TRAINER:
            return training(body, sources)
        return generation(path.removeprefix(f"{PLAYER}/"), body, sources)

    def _file_of(self, loop: asyncio.AbstractEventLoop, id: str, name: str) -> tuple[Path, str] | None:
        found = asyncio.run_coroutine_threadsafe(self.files.found(id, name), loop).result()
        return None if found is None else (found[0], found[2] or f"file {id} {name}")

    def _store_data(self, loop: asyncio.AbstractEventLoop, owner: str, content: bytes) -> tuple[Path, str]:
        return asyncio.run_coroutine_threadsafe(self.files.store_data(owner, content), loop).result()

    async def _clean_regularly(self) -> None:
        while True:
            await self.clean()
            await asyncio.sleep(_CLEAN_EVERY_SECONDS)

    async def clean(self) -> None:
        """Remove what ended, or was uploaded, longer ago than is kept, unless an unfinished job needs it."""
        moment = time.time() - self.settings.limits.keep_days * 86400
        needed = str([job.task for job in self.board.active.values()])
        for job in await self.database.run(self.database.finished_before, moment):
            await self.database.run(self.database.remove, job.id)
            self.board.forget(job.id)
            shutil.rmtree(self.board.folder(job.id).root, ignore_errors=True)
        for id in await self.database.run(self.database.uploads_before, moment):
            if id not in needed:
                await self.database.run(self.database.remove_upload, id)
                self.files.remove(id)


def _start_seconds(request: Request) -> float | None:
    """Longest time before the start that the caller allows."""
    text = request.headers.get("x-fal-request-timeout", "")
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds < 1e9 else None
