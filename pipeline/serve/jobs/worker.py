"""Runs the commands of one job in a process of its own: `python -m pipeline.serve.jobs.worker FOLDER`.

It outlives the server: one that is killed and started again finds the job by its lock. Light: standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from pipeline.serve.jobs.job_folder import JobFolder
from pipeline.serve.jobs.progress import LogLines

_LONGEST_LINE = 4000
_LOCK_ATTEMPTS, _LOCK_PAUSE_SECONDS = 20, 0.05
_NICE = 10
"""Below the server, which must answer while a training uses every core."""


class Worker:
    """Runs one command after another until one fails, and writes the log and the end."""

    def __init__(self, folder: JobFolder, lock: int) -> None:
        self.folder, self.lock = folder, lock
        self.child: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def run(self) -> None:
        """Run the job's commands; how they ended is in exit.json."""
        spec = self.folder.spec()
        signal.signal(signal.SIGTERM, self._stop)
        environment = spec["environment"]
        if any(self._run_command(command, environment) or not self._all_stored() for command in spec["gate"]):
            return self.folder.write_exit({"code": 0, "stopped": self.stopped, "not_stored": True})
        code = 0
        for command in spec["commands"]:
            code = self._run_command(command, environment)
            if code or self.stopped:
                break
        self.folder.write_exit({"code": code, "stopped": self.stopped})

    def _all_stored(self) -> bool:
        """Whether the plan that was just printed has nothing to do."""
        try:
            stages = json.loads(self.folder.stdout.read_bytes())["stages"]
            return all(stage["state"] == "HIT" for stage in stages)
        except (OSError, ValueError, TypeError, KeyError):
            return False

    def _stop(self, number: int, frame: object) -> None:
        """Pass the signal on: the command saves its state and ends."""
        self.stopped = True
        if self.child is not None:
            with suppress(ProcessLookupError):
                self.child.send_signal(signal.SIGTERM)

    def _run_command(self, command: list[str], environment: dict[str, str]) -> int:
        """Exit code of a command, negative for a signal; its stdout is kept, its stderr is the log."""
        with self.folder.stdout.open("wb") as stdout:
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                env=os.environ | environment,
                cwd=self.folder.root,
                pass_fds=[self.lock],
            )
        if self.stopped:
            self.child.send_signal(signal.SIGTERM)
        assert self.child.stderr is not None
        lines = LogLines()
        for raw in self.child.stderr:
            self._log(raw.decode("utf-8", "replace").rstrip(), lines)
        return self.child.wait()

    def _log(self, printed: str, lines: LogLines) -> None:
        for line in lines.of(printed):
            message = self.folder.without_paths(line.message)[:_LONGEST_LINE]
            with suppress(OSError):  # a full disk must not end the training
                self.folder.append_log(message, line.level, **line.more())


def main() -> None:
    """Run the job of the folder given as argument, unless another worker does."""
    folder = JobFolder(Path(sys.argv[1]))
    lock = _patiently_locked(folder)
    if lock is None or folder.exit() is not None:
        return
    folder.write_pid()
    with suppress(OSError):
        os.nice(_NICE)
    Worker(folder, lock).run()


def _patiently_locked(folder: JobFolder) -> int | None:
    """The lock, which the server takes for a moment to see whether it is held; None: another worker has the job."""
    for _ in range(_LOCK_ATTEMPTS):
        if (lock := folder.locked()) is not None:
            return lock
        time.sleep(_LOCK_PAUSE_SECONDS)
    return None


if __name__ == "__main__":
    main()
