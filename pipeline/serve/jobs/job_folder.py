"""The folder of a job: what its worker is asked to do, the log, and how it ended.

    spec.json     commands and environment, written before the worker starts
    lock          held by the worker and by the command that it runs, for as long as either lives
    pid           of the worker, which leads the process group of both
    log.jsonl     one line of the log each, with its time; appended
    stdout.json   what the last command printed
    exit.json     how it ended, written last
    output/       the files of the result

Light: standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cache.files.atomic_files import atomic_write_bytes


def timestamp() -> str:
    """Now, as ISO 8601 with milliseconds and offset."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class JobFolder:
    """Paths and files of one job."""

    root: Path

    @property
    def output(self) -> Path:
        """Where the command writes its results."""
        return self.root / "output"

    @property
    def log(self) -> Path:
        """One JSON object a line."""
        return self.root / "log.jsonl"

    @property
    def stdout(self) -> Path:
        """What the last command printed."""
        return self.root / "stdout.json"

    def write_spec(self, spec: dict[str, Any]) -> None:
        """Write what the worker is to do; how an earlier worker ended is forgotten."""
        self.output.mkdir(parents=True, exist_ok=True)
        for name in ("exit.json", "pid"):
            (self.root / name).unlink(missing_ok=True)
        atomic_write_bytes(self.root / "spec.json", json.dumps(spec).encode())

    def spec(self) -> dict[str, Any]:
        """What the worker is to do."""
        found: dict[str, Any] = json.loads((self.root / "spec.json").read_bytes())
        return found

    def write_exit(self, ended: dict[str, Any]) -> None:
        """Write how the work ended."""
        atomic_write_bytes(self.root / "exit.json", json.dumps(ended).encode())

    def exit(self) -> dict[str, Any] | None:
        """How the work ended; None while it has not."""
        return read_json(self.root / "exit.json")

    def append_log(self, message: str, level: str = "INFO", **more: Any) -> None:
        """Add one line to the log."""
        line = json.dumps({"message": message, "level": level, "timestamp": timestamp(), **more})
        with self.log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def locked(self) -> int | None:
        """The lock's file descriptor, which keeps it held while any process has it open; None: held by another."""
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def is_at_work(self) -> bool:
        """Whether a worker, or the command of one that was killed, is still running."""
        if not self.root.is_dir() or (descriptor := self.locked()) is None:
            return self.root.is_dir()
        os.close(descriptor)
        return False

    def without_paths(self, text: str) -> str:
        """A text without the folders of this server, which are nobody's business."""
        return text.replace(f"{self.root}/", "").replace(str(self.root.parents[2]), "store")

    def write_pid(self) -> None:
        """Record this process as the worker; call it with the lock held."""
        atomic_write_bytes(self.root / "pid", str(os.getpid()).encode())

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to the worker, SIGKILL to its whole process group; whether there was one to send it to.

        Only while the lock is held: then the process group still exists, and its number cannot be another's.
        """
        with suppress(OSError, ValueError):
            pid = int((self.root / "pid").read_text())
            if not self.is_at_work():
                return False
            if number == signal.SIGKILL:
                os.killpg(pid, number)
            else:
                self._send_gently(pid, number)
            return True
        return False

    def _send_gently(self, pid: int, number: signal.Signals) -> None:
        """To the worker, which passes it on; to the group where only the command is left."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            os.killpg(pid, number)


def read_json(file: Path) -> dict[str, Any] | None:
    """A JSON object in a file; None where there is no such file or it is damaged."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
