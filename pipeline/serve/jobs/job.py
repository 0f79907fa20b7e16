"""A job: one accepted request, from its submission to its result. Light: standard library only."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

QUEUED, RUNNING, FINISHED = "queued", "running", "finished"
"""States of a job."""
KEPT_LOG_LINES = 200
NO_STATUS = 0


@dataclass(kw_only=True)
class Job:
    """One row of the queue, and what is read from the job's folder while it is in memory."""

    id: str
    app: str
    """The application: `fal-ai/stable-audio-3-trainer`."""
    kind: str
    """`train` or `generate`."""
    owner: str
    """Of the key that it was submitted with."""
    request_digest: str
    """Of application, body and webhook as they were sent: a retried submit has the same."""
    input_digest: str
    """Of what decides the result."""
    task: dict[str, Any]
    """What its worker is asked to do (`pipeline.serve.jobs.commands`)."""
    base_url: str
    """Of this server as the caller sees it."""
    notes: list[str]
    """Lines at the beginning of its log."""
    webhook: str | None = None
    low_priority: bool = False
    start_seconds: float | None = None
    """Longest time it may wait before it starts."""
    number: int = 0
    """Order of submission."""
    state: str = QUEUED
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    device: str | None = None
    attempts: int = 0
    cancel_requested: bool = False
    status_code: int = NO_STATUS
    """HTTP status of its result."""
    result: dict[str, Any] | None = None
    """Body of its result: an output, or an error."""
    error: str | None = None
    error_type: str | None = None
    webhook_state: str = ""
    """`pending`, `sent` or `failed`."""

    log: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_LOG_LINES))
    num_logged: int = 0
    """Lines so far, those included that are no longer kept."""
    log_offset: int = 0
    """Bytes of log.jsonl that have been read."""
    progress: dict[str, Any] | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    changed: int = 0
    """Counts changes, for those that wait for one."""

    @property
    def is_over(self) -> bool:
        """Whether it has its result."""
        return self.state == FINISHED

    @property
    def succeeded(self) -> bool:
        """Whether its result is an output."""
        return self.is_over and self.error is None

    def add_line(self, line: dict[str, Any]) -> None:
        """Append one line of the log and note the progress that it reports."""
        self.log.append({"source": "USER"} | {name: line.get(name) for name in ("message", "level", "timestamp")})
        self.num_logged += 1
        self.changed += 1
        progress = line.get("progress")
        if progress:
            self.progress = progress
            if "loss" in progress:
                self.losses.append((progress["done"], progress["loss"]))
