"""The threat model of docs/serving.md: one test a line."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from pipeline.request import opener
from pipeline.request.opener import AddressRefused, is_public
from pipeline.serve.addresses import Signer, safe_name
from pipeline.serve.errors import ServeError
from pipeline.serve.jobs.job import Job
from pipeline.serve.jobs.webhooks import Webhooks, public_keys, signed_headers, wrong_address
from pipeline.serve.settings import Settings, check_exposure, read_keys
from tests.serving import (
    A_KEY,
    ANOTHER_KEY,
    TRAINER,
    WAITS,
    path_of,
    refuses,
    server,
    submit,
    upload,
    wait_for,
)

ANNA, BERT = {"authorization": f"Key {A_KEY}"}, {"authorization": f"Key {ANOTHER_KEY}"}
KEYS = (A_KEY, ANOTHER_KEY)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.com"])
def test_a_host_that_others_reach_needs_a_key(tmp_path, host):
    with pytest.raises(ServeError, match="--key-file"):
        check_exposure(Settings(store=tmp_path, host=host))
    check_exposure(Settings(store=tmp_path, host=host, keys=KEYS))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_this_machine_alone_needs_none(tmp_path, host):
    check_exposure(Settings(store=tmp_path, host=host))


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [("# none\n", 0o600, "holds no key"), ("short\n", 0o600, "fewer than 16"), (A_KEY, 0o644, "chmod 600")],
)
def test_a_key_file_that_protects_nothing_is_refused(tmp_path, content, mode, words):
    file = tmp_path / "keys"
    file.write_text(content)
    file.chmod(mode)
    with pytest.raises(ServeError, match=words):
        read_keys(file)


@pytest.mark.parametrize("given", [None, "Key wrong", "Key ", f"Basic {A_KEY}", A_KEY, f"Key {A_KEY}x", "Key \udcff"])
def test_without_a_right_key_nothing_is_answered(tmp_path, given):
    headers = {} if given is None else {"authorization": given.encode("utf-8", "surrogateescape")}
    with server(tmp_path, keys=KEYS) as client:
        for path in ("/jobs", "/jobs/x", "/metrics", f"{TRAINER}/requests/x"):
            assert client.get(path, headers=headers).status_code == 401
        for path in (TRAINER, f"/run{TRAINER}", "/storage/upload/initiate", "/storage/auth/token"):
            assert client.post(path, json={}, headers=headers).status_code == 401


def test_every_key_is_compared_in_constant_time(tmp_path, monkeypatch):
    seen = []
    compare = "pipeline.serve.settings.hmac.compare_digest"
    monkeypatch.setattr(compare, lambda a, b: seen.append((len(a), len(b))) or a == b)
    assert Settings(store=tmp_path, keys=KEYS).owner_of(A_KEY) is not None
    assert seen == [(32, 32), (32, 32)]


def test_jobs_of_another_key_do_not_exist(tmp_path):
    with server(tmp_path, keys=KEYS) as client:
        job = submit(client, ANNA)
        wait_for(client, job, **ANNA)
        for path in (job["status_url"], job["response_url"], f"{job['status_url']}/stream"):
            assert client.get(path_of(path), headers=BERT).status_code == 404
        assert client.put(path_of(job["cancel_url"]), headers=BERT).status_code == 404
        assert client.get("/jobs", headers=BERT).json()["jobs"] == []
        assert submit(client, BERT)["request_id"] != job["request_id"]


def test_the_same_body_of_two_keys_is_two_jobs(tmp_path):
    with server(tmp_path, WAITS, keys=KEYS) as client:
        assert submit(client, ANNA)["request_id"] != submit(client, BERT)["request_id"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "169.254.169.254"])
def test_a_name_that_was_bound_to_this_machine_is_refused(tmp_path, host):
    with server(tmp_path) as client:
        assert client.get("/jobs", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://["])
def test_scripts_of_foreign_pages_are_refused(tmp_path, origin):
    with server(tmp_path) as client:
        answer = client.post(TRAINER, json={}, headers={"origin": origin, "content-type": "text/plain"})
    assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://127.0.0.1", "https://app.example"])
def test_pages_that_may_call_are_told_so(tmp_path, origin):
    with server(tmp_path, origins=("https://app.example",)) as client:
        asked = client.options(TRAINER, headers={"origin": origin, "access-control-request-method": "POST"})
        answer = client.get("/health", headers={"origin": origin})
    assert asked.status_code == 204 and "x-fal-target-url" in asked.headers["access-control-allow-headers"]
    assert answer.headers["access-control-allow-origin"] == origin
    assert "x-fal-request-id" in answer.headers["access-control-expose-headers"]


ADDRESSES = [
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
    *("::1", "::", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "168.63.129.16"),
    *("fd00:ec2::254", "192.0.0.192", "255.255.255.255", "240.0.0.1"),
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_not_public_is_never_connected_to(address, monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))]
    monkeypatch.setattr(opener.socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(opener.socket, "socket", None)  # would fail
    assert not is_public(address)
    with pytest.raises(AddressRefused):
        opener.connect("innocent.example", 80, 1)


def test_the_address_that_was_checked_is_the_one_connected_to(monkeypatch):
    """A name that resolves to another address the second time gains nothing: it is asked once."""
    answers = iter([[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))]])
    connected = []

    class Connection:
        def __init__(self, *_):
            pass

        def settimeout(self, seconds):
            pass

        def connect(self, address):
            connected.append(address)

    monkeypatch.setattr(opener.socket, "getaddrinfo", lambda *_, **__: next(answers))
    monkeypatch.setattr(opener.socket, "socket", Connection)
    opener.connect("rebinding.example", 80, 1)
    assert connected == [("93.184.216.34", 80)]


class _Redirects(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.server.server_port}/secret")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_redirect_to_a_private_address_is_not_followed(monkeypatch):
    redirecting = HTTPServer(("127.0.0.1", 0), _Redirects)
    threading.Thread(target=redirecting.handle_request, daemon=True).start()
    monkeypatch.setenv(opener.POLICY_VARIABLE, opener.PUBLIC)
    first = iter([True])  # only the first address counts as public
    monkeypatch.setattr(opener, "is_public", lambda _: next(first, False))
    with pytest.raises(AddressRefused):
        opener.opener().open(f"http://127.0.0.1:{redirecting.server_port}/", timeout=5)
    redirecting.server_close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1:8080", "a.localhost"])
def test_plainly_private_data_is_refused_at_submit(tmp_path, host):
    with server(tmp_path) as client:
        answer = client.post(TRAINER, json={"audio_data_url": f"http://{host}/a.zip"})
    assert answer.status_code == 422 and answer.json()["detail"][0]["type"] == "file_download_error"


def test_workers_are_told_to_fetch_from_public_addresses_only(tmp_path):
    from pipeline.serve.jobs.commands import spec_of
    from pipeline.serve.jobs.job_folder import JobFolder

    job = Job(**JOB | {"task": {"recipe": {"audio_data_url": "https://example.com/a.zip"}}})
    for allow, expected in [(False, {"SA3_FETCH_ADDRESSES": "public"}), (True, {})]:
        settings = Settings(store=tmp_path, allow_private=allow)
        spec = spec_of(job, JobFolder(tmp_path / "a" / "b" / "c"), settings, "cpu", only_if_stored=False)
        assert spec["environment"] == expected
        assert "example.com" not in json.dumps(spec["commands"])  # other users see command lines


def test_a_forged_signature_opens_no_file(tmp_path):
    with server(tmp_path) as client:
        parts = path_of(upload(client, b"x")).split("/")
        for signature in ("0" * 32, "", parts[2][:-1] + "x", "é"):
            answer = client.get("/".join([*parts[:2], signature, *parts[3:]]))
            assert answer.status_code in (403, 404, 405)
        assert client.put("/upload/" + "/".join(parts[2:]), content=b"y").status_code == 403  # a file's is no upload's


@pytest.mark.parametrize("name", ["../../queue.sqlite", "..", "/etc/passwd", "%2e%2e%2fqueue.sqlite", "a/b", "\0"])
def test_no_path_leads_out_of_a_jobs_files(tmp_path, name):
    with server(tmp_path) as client:
        job = submit(client)
        wait_for(client, job)
        files = client.app.state.door.files
        assert client.portal.call(files.found, job["request_id"], name.replace("\0", "x")) is None
        assert client.portal.call(files.found, f"../{job['request_id']}", "adapter.json") is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\a.zip", "a.zip"),
        ("..", "upload.bin"),
        ("a\nb\0.zip", "a_b_.zip"),
        ("", "upload.bin"),
    ],
)
def test_names_of_uploads_are_no_paths(given, kept):
    assert safe_name(given) == kept


def test_an_upload_larger_than_allowed_is_refused_and_not_kept(tmp_path):
    with server(tmp_path, limits={"upload_bytes": 10}) as client:
        begun = client.post("/storage/upload/initiate", json={"file_name": "a.zip"}).json()
        chunks = iter([b"12345", b"67890", b"1"])
        answers = [client.put(path_of(begun["upload_url"]), content=content) for content in (b"x" * 11, chunks)]
        left = [file for file in (tmp_path / "store" / "serve" / "uploads").rglob("*") if file.is_file()]
    assert [answer.status_code for answer in answers] == [413, 413] and left == []


def test_a_body_larger_than_allowed_is_refused(tmp_path):
    with server(tmp_path, limits={"body_bytes": 100}) as client:
        assert client.post(TRAINER, json={"audio_data_url": "x" * 200}).status_code == 413


def test_a_key_has_a_quota_of_stored_bytes(tmp_path):
    with server(tmp_path, limits={"owner_bytes": 15}, keys=KEYS) as client:
        upload(client, b"0123456789", **ANNA)
        begun = client.post("/storage/upload/initiate", json={"file_name": "b"}, headers=ANNA).json()
        assert client.put(path_of(begun["upload_url"]), content=b"0123456789").status_code == 403
        upload(client, b"0123456789", **BERT)


def test_a_key_has_a_quota_of_waiting_jobs(tmp_path):
    with server(tmp_path, WAITS, limits={"queued_jobs": 1}, keys=KEYS) as client:
        wait_for(client, submit(client, ANNA), "IN_PROGRESS", **ANNA)
        submit(client, ANNA, rank=2)
        body = {"audio_data_url": "https://example.com/a.zip", "rank": 3}
        assert client.post(TRAINER, json=body, headers=ANNA).status_code == 403
        assert submit(client, ANNA, rank=2)  # a retry is none
        submit(client, BERT)


def test_an_upload_that_would_fill_the_disk_is_refused(tmp_path):
    with server(tmp_path, limits={"reserved_disk_bytes": 2**60}) as client:
        assert client.post("/storage/upload/initiate", json={"file_name": "a"}).status_code == 507


def test_a_body_that_pauses_too_long_is_ended(tmp_path):
    import asyncio

    from pipeline.serve.errors import Refused

    with server(tmp_path, limits={"silence_seconds": 0.05}) as client:
        guard = client.app.middleware_stack.app
        while not hasattr(guard, "_limited"):
            guard = guard.app

        async def silent():
            await asyncio.sleep(60)

        with pytest.raises(Refused, match="nothing"):
            client.portal.call(guard._limited(silent))


def test_no_folder_of_this_machine_is_named_in_logs_and_errors(tmp_path):
    script = "import pathlib, sys; print(f'error: {pathlib.Path.cwd()}/x', file=sys.stderr)\n"
    detail = [{"loc": ["body", "audio_data_url"], "type": "t", "msg": f"{tmp_path}/store/serve/uploads/1 is bad"}]
    with server(tmp_path, script + refuses(detail)) as client:
        job = submit(client)
        status = wait_for(client, job)
        result = client.get(path_of(job["response_url"]))
    assert str(tmp_path) not in json.dumps(status) + result.text


def test_secrets_are_for_the_owner_of_the_server_only(tmp_path):
    with server(tmp_path):
        assert os.stat(tmp_path / "store" / "serve" / "queue.sqlite").st_mode & 0o077 == 0  # noqa: PTH116


def test_a_file_is_never_shown_as_a_page(tmp_path):
    with server(tmp_path) as client:
        answer = client.get(path_of(upload(client, b"<script>", "a.html")))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert (
        answer.headers["x-content-type-options"] == "nosniff" and "sandbox" in answer.headers["content-security-policy"]
    )
    assert answer.headers["content-disposition"].startswith("attachment")


def test_the_page_runs_its_own_script_only(tmp_path):
    with server(tmp_path) as client:
        policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy


JOB = {
    **{"id": "i", "app": "a/b", "kind": "train", "owner": "o", "request_digest": "", "input_digest": "", "task": {}},
    **{"base_url": "http://x", "notes": []},
}


def test_a_token_is_for_uploads_and_expires():
    signer = Signer(b"x" * 32)
    assert signer.owner_of_token(signer.token("me", 100), now=99) == "me"
    for token in (
        signer.token("me", 98),
        signer.token("me", 100) + "0",
        "me.100.x",
        "",
        "me",
        signer.token("you", 100),
    ):
        assert signer.owner_of_token(token, now=99) != "me"


def test_a_token_opens_nothing_but_uploads(tmp_path):
    with server(tmp_path, keys=KEYS) as client:
        token = client.post("/storage/auth/token", json={}, headers=ANNA).json()["token"]
        headers = {"authorization": f"Bearer {token}"}
        assert client.get("/jobs", headers=headers).status_code == 401
        assert client.post("/files/upload", content=b"x", headers=headers).status_code == 200
        assert client.post("/files/upload", content=b"x").status_code == 401


@pytest.mark.parametrize("url", ["ftp://x/y", "x", "http://user:pass@example.com/", "http://[", "file:///etc/passwd"])
def test_a_webhook_goes_to_http_addresses_only(tmp_path, url):
    assert wrong_address(url)
    with server(tmp_path) as client:
        body = {"audio_data_url": "https://example.com/a.zip"}
        answer = client.post(TRAINER, params={"fal_webhook": url}, json=body)
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["query", "fal_webhook"]


def test_a_webhook_to_a_private_address_is_not_sent():
    job = Job(**JOB, webhook="http://127.0.0.1:9/x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opener.socket, "socket", None)
        assert Webhooks(SimpleNamespace(), b"x" * 32, allow_private=False)._is_taken(job) is False


def test_a_webhook_is_signed_with_the_published_key():
    import base64

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    secret, body, job = b"x" * 32, b"{}", Job(**JOB)
    headers = signed_headers(secret, job, body, 7)
    key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(public_keys(secret)["keys"][0]["x"] + "="))
    message = "\n".join(["i", "o", "7", hashlib.sha256(body).hexdigest()]).encode()
    key.verify(bytes.fromhex(headers["x-fal-webhook-signature"]), message)


class _Receiver(BaseHTTPRequestHandler):
    received: list = []  # noqa: RUF012

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.received.append((json.loads(body), {k.lower(): v for k, v in self.headers.items()}))
        self.send_response(200 if len(self.received) > 1 else 503)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("script_ends", "status"), [(True, "OK"), (False, "ERROR")])
def test_a_webhook_is_sent_again_until_it_is_taken(tmp_path, monkeypatch, script_ends, status):
    from tests.serving import FINISHES

    _Receiver.received = []
    receiver = HTTPServer(("127.0.0.1", 0), _Receiver)
    thread = threading.Thread(target=lambda: [receiver.handle_request() for _ in range(2)])
    thread.start()
    monkeypatch.setattr("pipeline.serve.jobs.webhooks._PAUSES_SECONDS", (0.01, 5.0))
    with server(tmp_path, FINISHES if script_ends else "raise SystemExit(1)", allow_private=True) as client:
        job = submit(client, query=f"?fal_webhook=http://127.0.0.1:{receiver.server_port}/x")
        thread.join(10)
    receiver.server_close()
    body, headers = _Receiver.received[-1]
    assert len(_Receiver.received) == 2 and body["request_id"] == job["request_id"] and body["status"] == status
    assert ("lora_file" in body["payload"]) == script_ends and headers["x-fal-webhook-signature"]


def test_headers_that_do_not_come_end_the_connection():
    from pipeline.serve.server import protocol_with_patience

    closed, calls = [], []
    protocol = protocol_with_patience(0.0).__new__(protocol_with_patience(0.0))
    protocol.loop = SimpleNamespace(call_later=lambda seconds, call: calls.append(call))
    protocol.transport = SimpleNamespace(is_closing=lambda: False, close=lambda: closed.append(True))
    protocol.cycle = None
    protocol.end_if_silent()
    assert closed == [True]


def test_every_line_of_the_threat_table_names_tests_that_exist():
    from pathlib import Path

    root = Path(__file__).parents[1]
    text = (root / "docs" / "serving.md").read_text(encoding="utf-8")
    tests = "".join(file.read_text(encoding="utf-8") for file in (root / "tests").glob("test_serve_*.py"))
    rows = [line for line in text.split("## Threat model")[1].splitlines() if line.startswith("| ")][1:]
    names = [word.strip("`,()|") for row in rows for word in row.split() if word.strip("`,()|").startswith("test_")]
    assert (
        len(names) > 25 and [name for name in names if not name.endswith(".py") and f"def {name}(" not in tests] == []
    )
