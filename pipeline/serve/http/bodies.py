"""Answers of the queue: bodies of submit and status, and the stream of status. Light: standard library only."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from pipeline.serve.jobs.board import Board
from pipeline.serve.jobs.job import QUEUED, RUNNING, Job

KEEP_ALIVE_SECONDS = 15.0
_STREAM_PAUSE_SECONDS = 0.1


def addresses(job: Job, base_url: str) -> dict[str, str]:
    """The addresses of a job."""
    root = f"{base_url}/{job.app}/requests/{job.id}"
    return {
        "request_id": job.id,
        "response_url": root,
        "status_url": f"{root}/status",
        "cancel_url": f"{root}/cancel",
    }


def submitted(job: Job, board: Board, base_url: str) -> dict[str, Any]:
    """The answer to a submit."""
    return {"status": "IN_QUEUE", "queue_position": board.position(job), **addresses(job, base_url)}


def status(job: Job, board: Board, base_url: str, logs: list[dict[str, Any]]) -> dict[str, Any]:
    """The status of a job: one of three, as the clients know no other."""
    body = addresses(job, base_url)
    if job.state == QUEUED:
        return {"status": "IN_QUEUE", "queue_position": board.position(job), "logs": logs, **body}
    if job.state == RUNNING:
        return {"status": "IN_PROGRESS", "logs": logs, **body, **_progress(job)}
    ended: dict[str, Any] = {"status": "COMPLETED", "logs": logs, **body}
    if job.started is not None and job.finished is not None:
        ended["metrics"] = {"inference_time": round(job.finished - job.started, 3)}
    return ended | ({"error": job.error, "error_type": job.error_type} if job.error else {})


def _progress(job: Job) -> dict[str, Any]:
    return {"progress": job.progress} if job.progress else {}


async def status_events(job: Job, board: Board, base_url: str, *, with_logs: bool) -> AsyncIterator[bytes]:
    """Server-sent events: a status at every change, with the log lines that are new since the one before."""
    told, seen, sent = 0, -1, time.monotonic()
    while True:
        if job.changed != seen:
            seen, sent = job.changed, time.monotonic()
            lines = list(job.log)[len(job.log) - min(len(job.log), job.num_logged - told) :] if with_logs else []
            told = job.num_logged
            body = json.dumps(status(job, board, base_url, lines))
            yield f"data: {body}\n\n".encode()
            if job.is_over:
                return
        await board.wait_for_change(job, _STREAM_PAUSE_SECONDS if job.changed != seen else KEEP_ALIVE_SECONDS)
        if time.monotonic() - sent >= KEEP_ALIVE_SECONDS - 0.5:
            sent = time.monotonic()
            yield b": keep-alive\n\n"


def summary(job: Job, base_url: str) -> dict[str, Any]:
    """What the page shows of a job."""
    recipe = job.task.get("recipe", {})
    what = {name: recipe[name] for name in ("model", "number_of_steps", "rank", "adapter_type") if name in recipe}
    shown = what or {name: job.task[name] for name in ("model", "prompt", "duration") if name in job.task}
    return {
        "id": job.id,
        "app": job.app,
        "kind": job.kind,
        "state": job.state,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "device": job.device,
        "error": job.error,
        "progress": job.progress,
        "cancel_requested": job.cancel_requested,
        "input": shown,
        "result": job.result if job.succeeded else None,
        **addresses(job, base_url),
    }
