"""Figures for Prometheus, in its text format. Light: no arrays; starlette only."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from pipeline.serve.http.door import Door


def metrics_text(door: Door, ended: Mapping[str, int]) -> str:
    """All figures. `ended`: jobs by the HTTP status of their results."""
    return "".join(f"{line}\n" for line in _lines(door, ended))


def _lines(door: Door, ended: Mapping[str, int]) -> Iterator[str]:
    yield from _metric("sa3_uptime_seconds", "gauge", "seconds since the start", {"": time.time() - door.began})
    yield from _metric("sa3_jobs_queued", "gauge", "jobs that wait", {"": len(door.board.queued())})
    yield from _metric("sa3_jobs_running", "gauge", "jobs at work", {"": len(door.board.running())})
    by_status = {f'{{status="{status}"}}': float(count) for status, count in ended.items()}
    yield from _metric("sa3_jobs_ended_total", "counter", "jobs with a result, by its HTTP status", by_status)
    answers = {f'{{status="{status}"}}': float(count) for status, count in sorted(door.counts.items())}
    yield from _metric("sa3_http_answers_total", "counter", "answers by HTTP status", answers)
    losses = {f'{{job="{job.id}"}}': job.losses[-1][1] for job in door.board.running() if job.losses}
    yield from _metric("sa3_training_loss", "gauge", "last loss of a training", losses)


def _metric(name: str, kind: str, help: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP {name} {help}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values.items():
        yield f"{name}{labels} {value:g}"
