"""The fifteen groups of conformance, with both released clients; the numbers are those of the groups."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
JS_CLIENTS = os.environ.get("SA3_JS_CLIENTS", "")
pytestmark = pytest.mark.skipif("SA3_TEST_SERVE" not in os.environ, reason="run by make test-serve")

JS, PY = "JavaScript", "Python"
has_js = pytest.mark.skipif(not (shutil.which("node") and JS_CLIENTS), reason="needs Node and @fal-ai/client")
has_py = pytest.mark.skipif(find_spec("fal_client") is None, reason="needs fal-client")
BOTH = [pytest.param(JS, marks=has_js), pytest.param(PY, marks=has_py)]
both = pytest.mark.parametrize("client", BOTH)
OUTPUT = ["config_file", "lora_file"]


class Server:
    """A server in a process of its own."""

    def __init__(self, store: Path, *, tls: bool = False) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.store, self.tls = store, tls
        self.base = f"{'https' if tls else 'http'}://localhost:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        module = "tests.serve_conformance.fake_server"
        command = [sys.executable, "-m", module, str(self.store), str(self.port), *(["tls"] if self.tls else [])]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        for _ in range(400):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        raise AssertionError("the server does not start")

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop it as systemd does."""
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("serve") / "store")
    started.start()
    yield started
    started.stop()


def command_of(client: str, case: str, base: str, mode: str = "", extra: str = "") -> list[str]:
    script = ["node", str(HERE / "cases.mjs")] if client == JS else [sys.executable, str(HERE / "cases.py")]
    mode = mode or ("proxy" if client == JS else "constants")
    return [*script, case, base, mode, extra]


def told(client: str, case: str, server: Server, mode: str = "", extra: str = "") -> Any:
    """What a client made of a case."""
    environment = os.environ | {"CLIENTS": JS_CLIENTS}
    if server.tls:
        environment["SSL_CERT_FILE"] = str(server.store / "serve" / "tls" / "ca-bundle.pem")
    command = command_of(client, case, server.base, mode, extra)
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, cwd=HERE)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@both
def test_01_subscribe_returns_the_output_object(server, client):
    found = told(client, "subscribe", server)
    assert (
        sorted(found["output"]) == OUTPUT and {"url", "file_name", "file_size"} <= found["output"]["lora_file"].keys()
    )
    assert {update["status"] for update in found["updates"]} <= {"IN_QUEUE", "IN_PROGRESS", "COMPLETED"}


@has_js
def test_01_subscribe_streaming(server):
    found = told(JS, "subscribe_streaming", server, "middleware")
    assert sorted(found["output"]) == OUTPUT and found["updates"][-1]["status"] == "COMPLETED"


@both
def test_02_submit_status_result_by_hand(server, client):
    found = told(client, "by_hand", server)
    assert found["status"]["status"] == "COMPLETED" and found["status"]["logs"] and sorted(found["output"]) == OUTPUT


@both
def test_03_statuses_have_logs_when_they_are_off(server, client):
    updates = told(client, "logs_off", server)["updates"]
    assert all("logs" in update for update in updates if update["status"] != "IN_QUEUE") and updates


@has_js
def test_04_streamed_lines_come_once_in_javascript(server):
    lines = [line["message"] for line in told(JS, "subscribe_streaming", server, "middleware")["updates"][-1]["logs"]]
    assert len(lines) == len(set(lines)) and lines[-1].startswith("train   10/10")


@has_py
def test_04_polled_lines_are_those_so_far_in_python(server):
    polls = [[line["message"] for line in update.get("logs") or []] for update in told(PY, "stream", server)]
    assert all(polls[-1][: len(lines)] == lines for lines in polls) and len(polls[-1]) >= 10


VIOLATIONS = {
    **{"model": "x", "number_of_steps": 0, "learning_rate": 1, "rank": 257, "adapter_type": "x", "batch_size": 9},
    **{"duration": 381, "pre_encode": "perhaps", "base_precision": "x", "include": 3, "seed": -1},
    **{"lora_checkpoint_url": 3, "audio_data_url": 3},
}


@both
@pytest.mark.parametrize("field", VIOLATIONS)
def test_05_a_violation_is_an_error_of_its_field(server, client, field):
    found = told(client, "violation", server, extra=json.dumps({field: VIOLATIONS[field]}))
    assert found["status"] == 422 and found["fields"].get(field)
    assert client == PY or found["validation"]


@both
def test_06_a_rank_that_the_layers_do_not_allow_is_an_error_of_the_rank(server, client):
    found = told(client, "failing", server, extra="3")
    assert found["status"] == 422 and found["fields"].get("rank")


@both
def test_06_nulls_are_unset_and_unknown_fields_ignored_with_a_line(server, client):
    found = told(client, "nulls", server)
    lines = [line["message"] for line in found["updates"][-1]["logs"]]
    assert sorted(found["output"]) == OUTPUT and any("unknown is not a field" in line for line in lines)


@both
def test_07_wrong_files_are_one_entry_each(server, client):
    found = told(client, "failing", server, extra="2")
    assert found["status"] == 422 and sorted(found["fields"]) == ["a.wav", "b.wav"]


@both
def test_08_cancel_in_every_state(server, client):
    found = told(client, "cancel", server)
    assert found == {
        **{"queued": "ok", "running": "ok", "other": "ok", "finished": 400, "unknown": 404, "result": 499},
    }


@both
def test_09_a_clients_time_out_ends_the_training(server, client):
    found = told(client, "time_out", server)
    assert found["status"]["status"] == "COMPLETED" and "value" not in found["error"]
    pid = int((server.store / "serve" / "jobs" / found["id"] / "pid.work").read_text())
    assert not Path(f"/proc/{pid}").exists()


@both
def test_10_a_server_that_is_killed_and_started_again_gives_the_result(tmp_path, client):
    started = Server(tmp_path / "store")
    started.start()
    environment = os.environ | {"CLIENTS": JS_CLIENTS}
    command = command_of(client, "long", started.base)
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE)
    while not list(started.store.glob("serve/jobs/*/done")):
        time.sleep(0.05)
    started.kill()
    started.start()
    output, _ = waiting.communicate(timeout=120)
    started.stop()
    assert sorted(json.loads(output.splitlines()[-1])["output"]) == OUTPUT
    (steps,) = started.store.glob("serve/jobs/*/steps")
    assert steps.read_text().split() == [str(step) for step in range(10)]


@both
def test_11_a_repeated_submit_starts_one_run(server, client):
    assert len(set(told(client, "duplicate", server))) == 1


@both
@pytest.mark.parametrize("num_bytes", [1000, 105 * 2**20], ids=["small", "large"])
def test_12_uploads_come_back(server, client, num_bytes):
    found = told(client, "upload", server, "fetch" if client == JS else "constants", str(num_bytes))
    assert found["bytes"] == num_bytes and found["same"]


@has_js
def test_12_a_blob_in_the_input_is_uploaded(server):
    assert sorted(told(JS, "blob", server)["output"]) == OUTPUT


@has_py
def test_12_the_fallback_repository_and_data_addresses(server):
    assert told(PY, "upload", server, "fallback", "1000")["same"]
    assert sorted(told(PY, "encode_file", server)["output"]) == OUTPUT


@has_js
@pytest.mark.parametrize("mode", ["proxy", "middleware", "fetch"])
def test_13_every_way_to_point_javascript_here(server, mode):
    assert sorted(told(JS, "subscribe", server, mode)["output"]) == OUTPUT
    assert sorted(told(JS, "run", server, mode)["output"]) == OUTPUT


@has_py
def test_13_python_by_constants(server):
    assert sorted(told(PY, "run", server)["output"]) == OUTPUT


@has_py
def test_13_python_by_environment_and_tls(tmp_path):
    started = Server(tmp_path / "store", tls=True)
    started.start()
    try:
        for case in ("subscribe", "run"):
            assert sorted(told(PY, case, started, "environment")["output"]) == OUTPUT
    finally:
        started.stop()


class Receiver(BaseHTTPRequestHandler):
    """Keeps what it receives."""

    def do_POST(self) -> None:
        self.server.received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@both
@pytest.mark.parametrize(("seed", "status"), [(0, "OK"), (2, "ERROR")])
def test_14_a_webhook_is_called(server, client, seed, status):
    receiver = HTTPServer(("127.0.0.1", 0), Receiver)
    receiver.received = []
    thread = threading.Thread(target=receiver.handle_request)
    thread.start()
    url = f"http://127.0.0.1:{receiver.server_port}/{client}"
    id = told(client, "webhook", server, extra=f"{seed} {url}")
    thread.join(30)
    receiver.server_close()
    (body,) = receiver.received
    assert body["request_id"] == id and body["status"] == status and body["payload"]


def test_15_polling_twenty_times_at_ten_hertz_is_answered_at_once(server):
    """The hour-long form is `python -m tests.serve_conformance.load`."""
    from tests.serve_conformance.load import load

    figures = load(server.base, clients=20, seconds=5)
    assert figures["errors"] == 0 and figures["p50_ms"] < 20
    with urllib.request.urlopen(f"{server.base}/health") as answer:
        assert answer.status == 200
