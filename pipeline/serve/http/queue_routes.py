"""Routes of the queue: submit, run, status, stream, result and cancel. Light: no arrays; starlette only."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pipeline.serve.errors import flat_error
from pipeline.serve.http.bodies import status, status_events, submitted
from pipeline.serve.http.door import Door
from pipeline.serve.jobs.job import FINISHED, QUEUED, Job

_JS_CLIENT = "@fal-ai/client"
_ON = {"1", "true", "True", "yes"}
_LOOK_EVERY_SECONDS = 1.0
_KEPT_STATUSES = 200


class QueueRoutes:
    """Endpoints of the queue."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self._statuses: dict[tuple[str, str, bool], tuple[tuple[int, str, int], bytes]] = {}

    def routes(self) -> list[Route]:
        """All of them; the most specific first."""
        one = "/{owner}/{alias}/requests/{id}"
        return [
            Route(f"{one}/status/stream", self.stream),
            Route(f"{one}/status", self.status),
            Route(f"{one}/cancel", self.cancel, methods=["PUT"]),
            Route(one, self.result),
            Route("/run/{path:path}", self.run, methods=["POST"]),
            Route("/{path:path}", self.submit, methods=["POST"]),
        ]

    async def submit(self, request: Request) -> Response:
        """Put a request into the queue; the answer comes when it is on disk."""
        if _is_run(request):
            return await self.run(request)
        path = request.path_params["path"].strip("/")
        job = await self.door.accepted(request, path)
        return _json(request, submitted(job, self.door.board, self.door.base_url(request)))

    async def run(self, request: Request) -> Response:
        """Put a request into the queue and hold the answer until it has its result."""
        job = await self.door.accepted(request, request.path_params["path"].strip("/"))
        while not job.is_over:
            await self.door.board.wait_for_change(job, _LOOK_EVERY_SECONDS)
            if not job.is_over and await _is_gone(request):
                await self.door.dispatcher.cancel(job)
                break
        return _result(request, job)

    async def status(self, request: Request) -> Response:
        """The status of a job, from memory."""
        job = await self.door.job_of(request)
        content = self._status_content(job, self.door.base_url(request), with_logs=_with_logs(request))
        headers = {"x-fal-request-id": job.id}
        return Response(content, 200 if job.state == FINISHED else 202, headers, "application/json")

    def _status_content(self, job: Job, base_url: str, *, with_logs: bool) -> bytes:
        """The body of a status, made once for all that poll a job between two of its changes."""
        place = self.door.board.position(job) if job.state == QUEUED else 0
        version = (job.changed, job.state, place)
        made = self._statuses.get((job.id, base_url, with_logs))
        if made is not None and made[0] == version:
            return made[1]
        body = status(job, self.door.board, base_url, list(job.log) if with_logs else [])
        content = json.dumps(body, separators=(",", ":")).encode()
        if len(self._statuses) >= _KEPT_STATUSES:
            self._statuses.clear()
        self._statuses[job.id, base_url, with_logs] = (version, content)
        return content

    async def stream(self, request: Request) -> Response:
        """The status at every change, as server-sent events."""
        job = await self.door.job_of(request)
        events = status_events(job, self.door.board, self.door.base_url(request), with_logs=_with_logs(request))
        headers = {"x-fal-request-id": job.id, "cache-control": "no-cache"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def result(self, request: Request) -> Response:
        """The output of a job, or its error."""
        return _result(request, await self.door.job_of(request))

    async def cancel(self, request: Request) -> Response:
        """Remove a queued job, or end a running one."""
        job = await self.door.job_of(request)
        if job.is_over:
            return _json(request, {"status": "ALREADY_COMPLETED"}, 400)
        was_queued = job.state == QUEUED
        await self.door.dispatcher.cancel(job)
        answer = {"status": "OK"} if was_queued else {"status": "CANCELLATION_REQUESTED"}
        return _json(request, answer, 200 if was_queued else 202)


def _is_run(request: Request) -> bool:
    """Whether a POST to an application is a run, not a submit, when both share an address.

    The JavaScript client's submit always names a priority, its run never does.
    """
    from_js = request.headers.get("user-agent", "").startswith(_JS_CLIENT)
    return from_js and "x-fal-queue-priority" not in request.headers


def _with_logs(request: Request) -> bool:
    return request.query_params.get("logs", "0") in _ON


def _json(request: Request, body: object, code: int = 200) -> JSONResponse:
    return JSONResponse(body, code, {"x-fal-request-id": request.state.request_id})


def _result(request: Request, job: Job) -> Response:
    if not job.is_over:
        message = "the request is still in progress; ask for its status until it is COMPLETED"
        response = _json(request, flat_error(message, "bad_request"), 400)
    else:
        response = _json(request, job.result, job.status_code)
    if job.error_type and job.is_over:
        response.headers["x-fal-error-type"] = job.error_type
    if job.status_code == 504:
        response.headers["x-fal-request-timeout-type"] = "user"  # the clients do not try again
    if job.error is not None:
        response.headers["x-fal-retryable"] = "false"
    return response


async def _is_gone(request: Request) -> bool:
    """Whether the caller has closed the connection."""
    with suppress(asyncio.TimeoutError):
        return await request.is_disconnected()
    return False
