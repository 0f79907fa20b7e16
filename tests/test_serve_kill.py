"""Servers and workers ended by kill -9 at random moments: nothing accepted is lost, and nothing runs twice."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills with POSIX signals")

ROOT = Path(__file__).parents[1]
SERVER = """
import json, sys
from pathlib import Path
from pipeline.serve.jobs import dispatcher
from pipeline.serve.server import run
from pipeline.serve.settings import Settings

def spec(job, folder, settings, device, *, only_if_stored):
    folder.root.mkdir(parents=True, exist_ok=True)
    return {"commands": [[sys.executable, "-S", "-c", WORK]], "gate": [], "environment": {}}

WORK = '''
import os, pathlib, sys, time
with open("running", "w") as file:  # two at once would see each other
    import fcntl
    try: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError: open("twice", "w")
    done = int(pathlib.Path("done").read_text()) if os.path.exists("done") else 0
    for step in range(done, 10):  # goes on where an earlier one stopped
        with open("steps", "a") as steps: steps.write(f"{step}\\\\n")
        time.sleep(0.03)
        pathlib.Path("done.new").write_text(str(step + 1)); os.replace("done.new", "done")
    for name in ("safetensors", "json"): pathlib.Path(f"output/adapter.{name}").write_text("x")
'''
dispatcher.spec_of = spec
dispatcher._POLL_SECONDS = 0.05
run(Settings(store=Path(sys.argv[1]), port=int(sys.argv[2])))
"""


class Killed:
    """A server that is started again and again on the same store."""

    def __init__(self, store: Path) -> None:
        self.store = store
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Of a server whose trainings are small scripts."""
        return [sys.executable, "-c", SERVER, str(self.store), str(self.port)]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(self.command(), cwd=ROOT, stderr=subprocess.DEVNULL)
        for _ in range(400):
            with contextlib.suppress(OSError):
                self.ask("GET", "/health")
                return
            time.sleep(0.05)
        raise AssertionError("the server does not start")

    def kill(self, workers: str) -> None:
        """Kill the server, and `none`, the `workers`, or the workers `and commands` with it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        for file in self.store.glob("serve/jobs/*/pid"):
            with contextlib.suppress(OSError, ValueError):
                pid = int(file.read_text())
                if b"pipeline.serve.jobs.worker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    continue
                if workers == "workers":
                    os.kill(pid, signal.SIGKILL)
                elif workers == "and commands":
                    os.killpg(pid, signal.SIGKILL)

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The JSON that it answers with."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", content, method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            return dict(json.load(error))


@pytest.mark.parametrize("num_kills", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_no_job_is_lost_and_none_runs_twice_when_everything_is_killed(tmp_path, num_kills):
    path, draw, server, jobs = "/fal-ai/stable-audio-3-trainer", random.Random(num_kills), Killed(tmp_path), []
    for _ in range(num_kills):
        server.start()
        for _ in range(2):
            body = {"audio_data_url": f"https://example.com/{len(jobs)}.zip"}
            jobs.append(server.ask("POST", path, body)["request_id"])
        time.sleep(draw.uniform(0, 0.7))
        server.kill(draw.choice(["none", "workers", "and commands"]))
    server.start()
    end = time.monotonic() + 60 + 2 * num_kills
    while waiting := [
        job for job in jobs if server.ask("GET", f"{path}/requests/{job}/status")["status"] != "COMPLETED"
    ]:
        assert time.monotonic() < end, f"{len(waiting)} of {len(jobs)} jobs do not end"
        time.sleep(0.2)
    results = [server.ask("GET", f"{path}/requests/{job}") for job in jobs]
    server.kill("none")
    assert all("lora_file" in result for result in results)
    assert list(tmp_path.glob("serve/jobs/*/twice")) == []
    for job in jobs:
        steps = [int(step) for step in (tmp_path / "serve" / "jobs" / job / "steps").read_text().split()]
        assert sorted(set(steps)) == list(range(10)) and steps == sorted(
            steps
        )  # at most the step that was cut off again


def test_a_worker_whose_server_was_killed_goes_on_and_is_found_by_the_next(tmp_path):
    server = Killed(tmp_path)
    server.start()
    path = "/fal-ai/stable-audio-3-trainer"
    job = server.ask("POST", path, {"audio_data_url": "https://example.com/a.zip"})["request_id"]
    steps = tmp_path / "serve" / "jobs" / job / "steps"
    while not steps.exists():
        time.sleep(0.01)
    server.kill("none")
    while steps.read_text().count("\n") < 10:
        time.sleep(0.05)
    server.start()
    for _ in range(100):
        status = server.ask("GET", f"{path}/requests/{job}/status?logs=1")
        if status["status"] == "COMPLETED":
            break
        time.sleep(0.05)
    server.kill("none")
    assert status["status"] == "COMPLETED" and steps.read_text().count("\n") == 10


class RealServer(Killed):
    """One that trains."""

    def command(self) -> list[str]:
        place = ["--store", str(self.store), "--port", str(self.port)]
        return [sys.executable, "-m", "pipeline", "serve", *place, "--threads", "1"]


def trained(server: RealServer, *, kill_after_step: int | None) -> bytes:
    """The adapter of a training of 120 steps, during which everything is killed once."""
    path, data = "/fal-ai/stable-audio-3-trainer", base64.b64encode(write_example(server.store.parent).read_bytes())
    body = {"audio_data_url": f"data:application/zip;base64,{data.decode()}", "model": "tiny-base", "rank": 2}
    server.start()
    job = server.ask("POST", path, body | {"number_of_steps": 120, "pre_encode": True})["request_id"]
    while (status := server.ask("GET", f"{path}/requests/{job}/status"))["status"] != "COMPLETED":
        progress = status.get("progress") or {}
        if kill_after_step and progress.get("stage") == "train" and progress["done"] > kill_after_step:
            kill_after_step = None
            server.kill("and commands")
            server.start()
        time.sleep(0.1)
    result = server.ask("GET", f"{path}/requests/{job}")
    with urllib.request.urlopen(result["lora_file"]["url"]) as answer:
        content: bytes = answer.read()
    server.kill("none")
    return content


def write_example(folder: Path) -> Path:
    from pipeline.example_dataset import write_example as written

    written(folder / "example.zip")
    return folder / "example.zip"


@pytest.mark.slow
def test_a_training_that_was_killed_gives_the_bytes_of_one_that_was_not(tmp_path):
    stores = [tmp_path / "killed" / "store", tmp_path / "whole" / "store"]
    for store in stores:
        store.parent.mkdir()
    killed, whole = (
        trained(RealServer(store), kill_after_step=step) for store, step in zip(stores, (60, None), strict=True)
    )
    assert killed == whole
