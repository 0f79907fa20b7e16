"""A server in this process whose jobs run small scripts in place of trainings."""

from __future__ import annotations

import io
import json
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline.serve.http.app import make_app
from pipeline.serve.jobs import dispatcher
from pipeline.serve.settings import Limits, Settings

TRAINER = "/fal-ai/stable-audio-3-trainer"
BASE = "http://127.0.0.1"
LONGEST_WAIT_SECONDS = 120
A_KEY, ANOTHER_KEY = "key-of-anna:0123456789", "key-of-bert:0123456789"

FINISHES = """
import json, pathlib, sys
for done in (1, 2):
    event = {"event": "progress", "stage": "train", "done": done, "total": 2, "loss": 3.5 - done}
    print(json.dumps(event), file=sys.stderr, flush=True)
pathlib.Path("output/adapter.safetensors").write_bytes(b"weights")
pathlib.Path("output/adapter.json").write_text("{}")
print(json.dumps({"files": []}))
"""
"""A training that ends at once."""

WAITS = """
import signal, sys, time, pathlib
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
with open("starts", "a") as file: file.write("x")
print("begun", file=sys.stderr, flush=True)
while not pathlib.Path("go").exists(): time.sleep(0.02)
"""
"""A training that goes on until the file `go` appears in its folder, and counts its starts."""


def refuses(detail: list[dict[str, Any]], code: int = 1) -> str:
    """A training that ends with these errors."""
    return f"import sys\nprint({json.dumps({'detail': detail, 'message': 'wrong data'})!r})\nsys.exit({code})"


@contextmanager
def server(tmp_path: Path, script: str = FINISHES, **options: Any) -> Iterator[TestClient]:
    """A client of a server that runs a script for every job."""
    limits = Limits(**options.pop("limits", {}))
    settings = Settings(store=tmp_path / "store", limits=limits, **options)

    def spec(job: Any, folder: Any, settings: Any, device: str, *, only_if_stored: bool) -> dict[str, Any]:
        folder.root.mkdir(parents=True, exist_ok=True)
        (folder.root / "task.json").write_text(json.dumps(job.task))
        return {"commands": [[sys.executable, "-c", script]], "gate": [], "environment": {}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher, "spec_of", spec)
        patch.setattr(dispatcher, "_POLL_SECONDS", 0.02)
        with TestClient(make_app(settings), base_url=BASE, raise_server_exceptions=True) as client:
            yield client


def submit(client: TestClient, headers: dict[str, str] | None = None, query: str = "", **fields: Any) -> dict[str, Any]:
    """The answer to a submit that is accepted."""
    answer = client.post(
        TRAINER + query, json={"audio_data_url": "https://example.com/a.zip"} | fields, headers=headers
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def path_of(url: str) -> str:
    """The path of one of the server's addresses."""
    return url.removeprefix(BASE)


def wait_for(client: TestClient, job: dict[str, Any], status: str = "COMPLETED", **headers: str) -> dict[str, Any]:
    """The first status of a job that has a value."""
    end = time.monotonic() + LONGEST_WAIT_SECONDS
    while time.monotonic() < end:
        found: dict[str, Any] = client.get(path_of(job["status_url"]) + "?logs=1", headers=headers).json()
        if found["status"] == status and (status != "IN_PROGRESS" or found["logs"]):
            return found
        time.sleep(0.02)
    raise AssertionError(f"{found} is not {status}")


def upload(client: TestClient, content: bytes, name: str = "clips.zip", **headers: str) -> str:
    """Upload bytes as the JavaScript client does; the file's address."""
    body = {"file_name": name, "content_type": "application/zip"}
    begun = client.post("/storage/upload/initiate?storage_type=fal-cdn-v3", json=body, headers=headers).json()
    assert client.put(path_of(begun["upload_url"]), content=content).status_code == 200
    return str(begun["file_url"])


def small_zip() -> bytes:
    """A zip with one text."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.txt"), "a caption")
    return stream.getvalue()


def task_of(tmp_path: Path, job: dict[str, Any]) -> dict[str, Any]:
    """What the worker of a job was asked to do."""
    file = tmp_path / "store" / "serve" / "jobs" / job["request_id"] / "task.json"
    found: dict[str, Any] = json.loads(file.read_text())
    return found
