"""Polls a server as the Python client does, and says how long its answers took.

python -m tests.serve_conformance.load http://localhost:8765 20 600
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

APP = "/fal-ai/stable-audio-3-trainer"
_PAUSE_SECONDS = 0.1


def load(base: str, clients: int, seconds: float, job: str | None = None) -> dict[str, Any]:
    """Times of answers in milliseconds, of so many clients that each ask ten times a second."""
    host = urlsplit(base).netloc
    if job is None:
        job = _submit(host)
    times: list[float] = []
    errors: list[str] = []
    end = time.monotonic() + seconds
    threads = [threading.Thread(target=_poll, args=(host, job, end, times, errors)) for _ in range(clients)]
    for thread in threads:
        thread.start()
        time.sleep(_PAUSE_SECONDS / clients)
    for thread in threads:
        thread.join()
    times.sort()
    at = {name: round(1000 * times[int(part * (len(times) - 1))], 2) for name, part in _PARTS.items()}
    return {"answers": len(times), "errors": len(errors), "first_error": next(iter(errors), None), **at}


_PARTS = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99, "most_ms": 1.0}


def _submit(host: str) -> str:
    connection = http.client.HTTPConnection(host, timeout=30)
    body = json.dumps({"audio_data_url": "https://example.com/a.zip", "seed": 1})
    connection.request("POST", APP, body, {"content-type": "application/json"})
    return str(json.load(connection.getresponse())["request_id"])


def _poll(host: str, job: str, end: float, times: list[float], errors: list[str]) -> None:
    connection = http.client.HTTPConnection(host, timeout=30)
    while time.monotonic() < end:
        begun = time.perf_counter()
        try:
            connection.request("GET", f"{APP}/requests/{job}/status?logs=true")
            answer = connection.getresponse()
            json.loads(answer.read())
            if answer.status not in (200, 202):
                errors.append(str(answer.status))
        except (OSError, ValueError, http.client.HTTPException) as error:
            errors.append(repr(error))
            connection.close()
        times.append(time.perf_counter() - begun)
        time.sleep(max(0.0, _PAUSE_SECONDS - times[-1]))


if __name__ == "__main__":
    print(json.dumps(load(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])))
