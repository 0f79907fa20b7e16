"""The durable queue: jobs, uploads and secrets in SQLite, on disk before a request is answered.

Light: standard library only. Every function is called by one thread at a time (`Database.run`).
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pipeline.serve.jobs.job import FINISHED, Job

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, app TEXT NOT NULL, kind TEXT NOT NULL,
    owner TEXT NOT NULL, request_digest TEXT NOT NULL, input_digest TEXT NOT NULL, task TEXT NOT NULL,
    base_url TEXT NOT NULL, notes TEXT NOT NULL, webhook TEXT, low_priority INTEGER NOT NULL, start_seconds REAL,
    state TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL, device TEXT, attempts INTEGER NOT NULL,
    cancel_requested INTEGER NOT NULL, status_code INTEGER NOT NULL, result TEXT, error TEXT, error_type TEXT,
    webhook_state TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state);
CREATE INDEX IF NOT EXISTS jobs_by_input ON jobs (input_digest);
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, content_type TEXT NOT NULL,
    num_bytes INTEGER NOT NULL, sha256 TEXT, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL);
"""
_COLUMNS = (
    *("number", "id", "app", "kind", "owner", "request_digest", "input_digest", "task", "base_url", "notes", "webhook"),
    *("low_priority", "start_seconds", "state", "created", "started", "finished", "device", "attempts"),
    *("cancel_requested", "status_code", "result", "error", "error_type", "webhook_state"),
)
_JSON = ("task", "notes", "result")
_FLAGS = ("low_priority", "cancel_requested")


class Database:
    """The file of the queue, and the one thread that uses it."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(file, check_same_thread=False, isolation_level=None, timeout=30)
        file.chmod(0o600)  # it holds the secret that signs addresses
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(_SCHEMA)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="queue")

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function on the queue's thread: a commit waits for the disk, and polls must not wait for it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def close(self) -> None:
        """Finish what was begun, and close the file."""
        self._thread.shutdown()
        self._connection.close()

    def insert(self, job: Job) -> None:
        """Add a job; it is on disk when this returns."""
        row = _row(job)
        del row["number"]
        names = ", ".join(row)
        marks = ", ".join(f":{name}" for name in row)
        cursor = self._connection.execute(f"INSERT INTO jobs ({names}) VALUES ({marks})", row)
        job.number = int(cursor.lastrowid or 0)

    def update(self, job: Job, *names: str) -> None:
        """Write some fields of a job."""
        row = _row(job)
        settings = ", ".join(f"{name} = :{name}" for name in names)
        self._connection.execute(f"UPDATE jobs SET {settings} WHERE id = :id", row)

    def unfinished(self) -> list[Job]:
        """Jobs that are queued or running, in their order; also those whose webhook is still to be sent."""
        return list(self._jobs("state != ? OR webhook_state = 'pending' ORDER BY number", FINISHED))

    def find(self, id: str) -> Job | None:
        """A job by its id."""
        return next(self._jobs("id = ?", id), None)

    def finished_twin(self, input_digest: str) -> Job | None:
        """A finished job of the same input that succeeded."""
        found = self._jobs("input_digest = ? AND state = ? AND error IS NULL LIMIT 1", input_digest, FINISHED)
        return next(found, None)

    def recent(self, owner: str, count: int) -> list[Job]:
        """The newest jobs of an owner, newest first."""
        return list(self._jobs("owner = ? ORDER BY number DESC LIMIT ?", owner, count))

    def finished_before(self, moment: float) -> list[Job]:
        """Jobs that ended before a moment."""
        return list(self._jobs("state = ? AND finished < ?", FINISHED, moment))

    def remove(self, id: str) -> None:
        """Forget a job."""
        self._connection.execute("DELETE FROM jobs WHERE id = ?", (id,))

    def counts(self) -> dict[str, int]:
        """How many jobs ended with each HTTP status."""
        found = self._connection.execute(
            "SELECT status_code, COUNT(*) FROM jobs WHERE state = ? GROUP BY 1", (FINISHED,)
        )
        return {str(code): count for code, count in found}

    def secret(self, name: str) -> bytes:
        """A random secret of 32 bytes, made on first use."""
        self._connection.execute("INSERT OR IGNORE INTO secrets VALUES (?, ?)", (name, secrets.token_bytes(32)))
        return bytes(self._connection.execute("SELECT value FROM secrets WHERE name = ?", (name,)).fetchone()[0])

    def _jobs(self, condition: str, *values: Any) -> Iterator[Job]:
        found = self._connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM jobs WHERE {condition}", values)
        return (_job(row) for row in found.fetchall())

    def add_upload(self, upload: dict[str, Any]) -> None:
        """Record an upload that may begin."""
        names = ", ".join(upload)
        marks = ", ".join(f":{name}" for name in upload)
        self._connection.execute(f"INSERT INTO uploads ({names}) VALUES ({marks})", upload)

    def upload(self, id: str) -> dict[str, Any] | None:
        """An upload by its id."""
        cursor = self._connection.execute("SELECT * FROM uploads WHERE id = ?", (id,))
        row = cursor.fetchone()
        return None if row is None else dict(zip([column[0] for column in cursor.description], row, strict=True))

    def finish_upload(self, id: str, num_bytes: int, sha256: str) -> None:
        """Record that an upload is whole."""
        self._connection.execute("UPDATE uploads SET num_bytes = ?, sha256 = ? WHERE id = ?", (num_bytes, sha256, id))

    def uploaded_bytes(self, owner: str) -> int:
        """Bytes of all uploads of an owner."""
        found = self._connection.execute("SELECT TOTAL(num_bytes) FROM uploads WHERE owner = ?", (owner,))
        return int(found.fetchone()[0])

    def uploads_before(self, moment: float) -> list[str]:
        """Uploads that began before a moment."""
        return [row[0] for row in self._connection.execute("SELECT id FROM uploads WHERE created < ?", (moment,))]

    def remove_upload(self, id: str) -> None:
        """Forget an upload."""
        self._connection.execute("DELETE FROM uploads WHERE id = ?", (id,))


def _row(job: Job) -> dict[str, Any]:
    return {name: json.dumps(value) if name in _JSON else value for name in _COLUMNS for value in [getattr(job, name)]}


def _job(row: tuple[Any, ...]) -> Job:
    values: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    values |= {name: json.loads(values[name]) for name in _JSON}
    values |= {name: bool(values[name]) for name in _FLAGS}
    return Job(**values)
