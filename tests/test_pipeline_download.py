"""Downloads from a real server that stalls, truncates, lies, redirects in circles, and can or cannot resume."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cache.store import Store
from pipeline.cli_errors import error_json
from pipeline.errors import FetchFailed
from pipeline.request.download import Download, Downloader, RetryPolicy
from pipeline.request.recipe import read_recipe
from pipeline.request.resolve import resolve_inputs
from tests.small_datasets import clips, zipped

IMPATIENT = RetryPolicy(timeout_seconds=0.4, attempts=3, pause_seconds=0.01)


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content` in the manner of the path."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        server = self.server
        server.seen.append((self.path, dict(self.headers)))
        manner = self.path.partition("?")[0].strip("/").partition("/")[0]
        getattr(self, f"serve_{manner}")(server.content)

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def serve_plain(self, content: bytes) -> None:
        self.answer(200, content)

    def serve_good(self, content: bytes) -> None:
        """Ranges, conditions, a strong tag: all that a good server does."""
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        if self.headers.get("If-None-Match") == tag:
            self.answer(304, b"", ETag=tag)
        elif (asked := self.headers.get("Range")) and self.headers.get("If-Range") == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206, content[start:], ETag=tag, Content_Range=span)
        else:
            self.answer(200, content, ETag=tag)

    def serve_breaks(self, content: bytes) -> None:
        """As `good`, but each connection ends after a third of the file."""
        self.part_of(content, then=lambda: None)

    def serve_stalls(self, content: bytes) -> None:
        """As `breaks`, but it goes quiet instead."""
        self.part_of(content, then=lambda: time.sleep(2 * IMPATIENT.timeout_seconds))

    def part_of(self, content: bytes, then: object) -> None:
        tag, start = '"v1"', 0
        if (asked := self.headers.get("Range")) and self.headers.get("If-Range") == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", tag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = start + len(content) // 3 + 1
        self.wfile.write(content[start:stop])
        self.wfile.flush()
        if stop < len(content):
            then()
        self.close_connection = True

    def serve_stops(self, content: bytes) -> None:
        """No ranges, no tag, and never the whole file."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True

    def serve_overstates(self, content: bytes) -> None:
        self.answer(200, content, Content_Length=str(len(content) + 1000))
        self.close_connection = True

    def serve_understates(self, content: bytes) -> None:
        self.answer(200, content, Content_Length=str(len(content) - 100))
        self.close_connection = True

    def serve_endless(self, content: bytes) -> None:
        """Chunks without end and without a length."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(1000):
            self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    def serve_drips(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for byte in content[:40]:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.05)

    def serve_wrongrange(self, content: bytes) -> None:
        """Answers a range with another one."""
        if self.headers.get("Range"):
            self.answer(206, content, ETag='"v1"', Content_Range=f"bytes 0-{len(content) - 1}/{len(content)}")
        else:
            self.part_of(content, then=lambda: None)

    def serve_circle(self, content: bytes) -> None:
        self.answer(302, b"", Location="/circle/more" if self.path.endswith("/clips.zip") else "/circle/clips.zip")

    def serve_hops(self, content: bytes) -> None:
        left = int(self.path.rpartition("/")[2])
        self.answer(302, b"", Location=f"/hops/{left - 1}" if left else "/good/clips.zip")

    def serve_away(self, content: bytes) -> None:
        self.answer(302, b"", Location="file:///etc/hostname")

    def serve_gone(self, content: bytes) -> None:
        self.answer(404, b"not here")

    def serve_busy(self, content: bytes) -> None:
        self.answer(503, b"later")

    def serve_page(self, content: bytes) -> None:
        self.answer(200, b"<html>please log in</html>")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    content = b""

    def handle_error(self, request: object, address: object) -> None:
        """A client that hangs up is what is tested here."""


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server(("127.0.0.1", 0), Handler)
    served.seen = []
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()


@pytest.fixture
def zip_bytes(tmp_path, server) -> bytes:
    server.content = zipped(tmp_path / "made.zip", clips("a", "b")).read_bytes()
    return server.content


def fetch(server: Server, tmp_path: Path, path: str, said: list[str] | None = None, **changes: object) -> Path:
    values = {"max_bytes": 10**8, "fault": lambda file: None, **changes}
    address = f"http://127.0.0.1:{server.server_port}/{path}"
    download = Download(field="audio_data_url", url=address, suffix=".zip", **values)
    folder = tmp_path / "sources"
    folder.mkdir(exist_ok=True)
    say = said.append if said is not None else lambda line: None
    return Downloader(download=download, folder=folder, say=say, retry=IMPATIENT).run()


@pytest.mark.parametrize("manner", ["plain", "good", "breaks", "stalls", "hops/3"])
def test_the_whole_file_arrives_whatever_the_server_does_on_the_way(server, tmp_path, zip_bytes, manner):
    fetched = fetch(server, tmp_path, manner if "/" in manner else f"{manner}/clips.zip")
    assert fetched.read_bytes() == zip_bytes
    assert fetched.name == f"{hashlib.sha256(zip_bytes).hexdigest()[:32]}.zip"
    left = {path.name for path in (tmp_path / "sources").rglob("*") if path.is_file()}
    assert not {name for name in left if ".part" in name or ".tmp" in name}


def test_a_broken_download_is_resumed_where_it_broke(server, tmp_path, zip_bytes):
    fetch(server, tmp_path, "breaks/clips.zip")
    starts = [headers.get("Range") for _, headers in server.seen]
    assert starts == [None, *(f"bytes={len(zip_bytes) // 3 * part + part}-" for part in (1, 2))]


def test_a_second_run_resumes_the_download_of_the_first(server, tmp_path, zip_bytes):
    address = "breaks/clips.zip"
    with pytest.raises(FetchFailed, match=r"kB are kept. Run the same command again to resume"):
        Downloader(download=Download(field="f", url=f"http://127.0.0.1:{server.server_port}/{address}", suffix=".zip",
                            max_bytes=10**8, fault=lambda file: None), folder=made(tmp_path / "sources"),
              retry=RetryPolicy(timeout_seconds=0.4, attempts=1)).run()  # fmt: skip
    said: list[str] = []
    assert fetch(server, tmp_path, address, said).read_bytes() == zip_bytes
    assert any("resuming at" in line for line in said)


def made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def test_a_file_that_changed_between_two_attempts_is_downloaded_from_the_start(server, tmp_path, zip_bytes):
    once = RetryPolicy(timeout_seconds=0.4, attempts=1)
    download = Download(field="f", url=f"http://127.0.0.1:{server.server_port}/breaks/clips.zip", suffix=".zip",
                    max_bytes=10**8, fault=lambda file: None)  # fmt: skip
    folder = made(tmp_path / "sources")
    with pytest.raises(FetchFailed):
        Downloader(download=download, folder=folder, retry=once).run()
    part_facts = next((folder / "addresses").glob("*.part.json"))
    part_facts.write_text(json.dumps({"etag": '"v0"', "last_modified": None}))
    said: list[str] = []
    assert fetch(server, tmp_path, "breaks/clips.zip", said).read_bytes() == zip_bytes
    assert any("starting over" in line for line in said)


@pytest.mark.parametrize(
    ("manner", "words"),
    [
        ("stops/clips.zip", "the connection ended after .* \\(3 attempts\\)"),
        ("overstates/clips.zip", "the connection ended after|nothing was received for"),
        ("drips/clips.zip", "only .* bytes were received in 0.4 s"),
        ("circle/clips.zip", "redirects in circles"),
        ("hops/9", "more than 5 times"),
        ("away/clips.zip", "file:///etc/hostname' is not allowed"),
        ("wrongrange/clips.zip", "another range than the one requested|ended after"),
        ("gone/clips.zip", "404 Not Found"),
        ("busy/clips.zip", "503 Service Unavailable \\(3 attempts\\)"),
        ("endless/clips.zip", "over the limit of 1.0 MB"),
    ],
)
def test_a_failed_download_is_an_error_that_says_why(server, tmp_path, zip_bytes, manner, words):
    with pytest.raises(FetchFailed, match=words) as caught:
        fetch(server, tmp_path, manner, max_bytes=10**6)
    (entry,) = error_json(caught.value)["detail"]
    assert (entry["loc"], entry["type"]) == (["body", "audio_data_url"], "file_download_error")
    assert not list((tmp_path / "sources").glob("*.zip"))


def test_a_file_over_the_limit_is_refused_before_it_is_downloaded(server, tmp_path, zip_bytes):
    with pytest.raises(FetchFailed, match="over the limit of 100 B"):
        fetch(server, tmp_path, "good/clips.zip", max_bytes=100)


def test_a_server_that_is_not_there_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    download = Download(field="f", url="http://127.0.0.1:9/x.zip", suffix=".zip", max_bytes=1, fault=lambda file: None)
    with pytest.raises(FetchFailed, match=r"the connection broke .* Run the same command again"):
        Downloader(download=download, folder=made(tmp_path / "s"), retry=IMPATIENT).run()


def test_a_file_of_another_digest_is_not_kept(server, tmp_path, zip_bytes):
    with pytest.raises(FetchFailed, match=f"its sha256 is {hashlib.sha256(zip_bytes).hexdigest()}"):
        fetch(server, tmp_path, "good/clips.zip", sha256="0" * 64)
    assert not [path for path in (tmp_path / "sources").rglob("*") if path.is_file()]


def test_an_unchanged_file_is_not_downloaded_again(server, tmp_path, zip_bytes):
    said: list[str] = []
    first = fetch(server, tmp_path, "good/clips.zip", said)
    assert fetch(server, tmp_path, "good/clips.zip", said) == first
    assert "not downloaded again" in said[-1]
    server.content = zip_bytes + b"more"
    second = fetch(server, tmp_path, "good/clips.zip", said)
    assert second.read_bytes() == zip_bytes + b"more"
    assert "has changed since" in said[-1]


def port_that_nobody_listens_on(server) -> None:
    server.shutdown()
    server.server_close()


def test_without_a_network_what_the_address_gave_before_is_used_and_said(server, tmp_path, zip_bytes):
    said: list[str] = []
    first = fetch(server, tmp_path, "good/clips.zip", said)
    port_that_nobody_listens_on(server)
    assert fetch(server, tmp_path, "good/clips.zip", said) == first
    assert "gives nothing now (the connection broke" in said[-1] and "what it gave on 20" in said[-1]


@pytest.mark.parametrize("status", [401, 403, 404, 410, 503])
def test_an_address_that_has_expired_does_not_take_away_what_it_gave(server, tmp_path, zip_bytes, status, monkeypatch):
    first = fetch(server, tmp_path, "good/clips.zip")
    monkeypatch.setattr(Handler, "serve_good", lambda self, content: self.answer(status, b""))
    said: list[str] = []
    assert fetch(server, tmp_path, "good/clips.zip", said) == first
    assert f"gives nothing now (the server answers {status}" in said[-1]


def test_what_the_address_gave_is_not_used_in_place_of_a_newer_file_that_breaks_off(
    server, tmp_path, zip_bytes, monkeypatch
):
    fetch(server, tmp_path, "good/clips.zip")
    server.content = zip_bytes + b"more"
    monkeypatch.setattr(Handler, "serve_good", Handler.serve_stops)
    with pytest.raises(FetchFailed, match="the connection ended after"):
        fetch(server, tmp_path, "good/clips.zip")


def test_what_the_address_gave_is_not_used_where_another_digest_is_asked_for(server, tmp_path, zip_bytes):
    fetch(server, tmp_path, "good/clips.zip")
    port_that_nobody_listens_on(server)
    with pytest.raises(FetchFailed, match="its sha256 is"):
        fetch(server, tmp_path, "good/clips.zip", sha256="0" * 64)


def test_a_server_without_etags_is_downloaded_from_each_time(server, tmp_path, zip_bytes):
    for _ in range(2):
        fetch(server, tmp_path, "plain/clips.zip")
    assert len(server.seen) == 2


def test_the_query_of_a_url_is_neither_printed_nor_stored(server, tmp_path, zip_bytes):
    said: list[str] = []
    fetch(server, tmp_path, "good/clips.zip?token=secret", said)
    assert server.seen[0][0].endswith("?token=secret")
    kept = b"".join(path.read_bytes() for path in (tmp_path / "sources" / "addresses").iterdir())
    assert "secret" not in " ".join(said) and b"secret" not in kept


# Through the request


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """Reading the weights would take longer than all of this."""
    monkeypatch.setattr("pipeline.request.resolve.weights_folder", lambda recipe, **more: (None, "not needed here"))


def recipe(server: Server, tmp_path: Path, manner: str, **fields: object):
    address = f"http://127.0.0.1:{server.server_port}/{manner}/clips.zip"
    return read_recipe(address, {"model": "tiny-base", "store": str(tmp_path / "store"), **fields})


def test_a_request_with_a_url_ingests_the_downloaded_zip(server, tmp_path, zip_bytes):
    found = resolve_inputs(recipe(server, tmp_path, "good"), fetch=True)
    assert [member.name for member in found.source.members] == ["a.txt", "a.wav", "b.txt", "b.wav"]
    assert found.source.path.parent == tmp_path / "store" / "shared" / "sources"


def test_a_second_command_waits_for_the_first_that_downloads_the_same_address(server, tmp_path, zip_bytes):
    asked, said, found = recipe(server, tmp_path, "good"), [], []
    key = hashlib.sha256(asked.source.encode()).hexdigest()
    with Store(asked.store).lock("fetch", key):
        waiting = threading.Thread(
            target=lambda: found.append(resolve_inputs(asked, fetch=True, say=said.append).source.kind)
        )
        waiting.start()
        while not said and waiting.is_alive():
            waiting.join(0.01)
    waiting.join(60)
    assert said[0].endswith("which is downloading the same address; Ctrl-C ends the wait")
    assert found == ["zip"]


def test_a_downloaded_file_that_was_damaged_in_the_store_is_downloaded_again(server, tmp_path, zip_bytes):
    asked, said = recipe(server, tmp_path, "good"), []
    before = resolve_inputs(asked, fetch=True).source
    content = bytearray(zip_bytes)
    content[40] ^= 1
    before.path.write_bytes(content)
    again = resolve_inputs(asked, fetch=True, say=said.append).source
    assert again == before and again.path.read_bytes() == zip_bytes
    assert any("is damaged; it is downloaded again" in line for line in said)


def test_a_data_zip_that_was_damaged_in_the_store_is_written_again(tmp_path, zip_bytes):
    address = f"data:application/zip;base64,{base64.b64encode(zip_bytes).decode()}"
    asked = read_recipe(address, {"model": "tiny-base", "store": str(tmp_path / "store")})
    before = resolve_inputs(asked, fetch=True).source
    before.path.write_bytes(bytes(len(zip_bytes)))
    assert resolve_inputs(asked, fetch=True).source == before
    assert before.path.read_bytes() == zip_bytes


def test_a_plan_takes_what_the_address_gave_before_and_asks_nobody(server, tmp_path, zip_bytes):
    asked, said = recipe(server, tmp_path, "good"), []
    fetched = resolve_inputs(asked, fetch=True).source
    server.seen.clear()
    assert resolve_inputs(asked, fetch=False, say=said.append).source == fetched
    assert server.seen == [] and "taken as it was on 20" in said[0]


def test_a_plan_downloads_nothing_and_finds_a_zip_of_the_store_by_its_digest(server, tmp_path, zip_bytes):
    asked = recipe(server, tmp_path, "good")
    found = resolve_inputs(asked, fetch=False)
    assert found.why_no_source.startswith("unknown until fetched") and not found.source.fingerprint
    assert server.seen == [] and not (tmp_path / "store").exists()
    fetched = resolve_inputs(asked, fetch=True).source.fingerprint
    count = len(server.seen)
    by_digest = recipe(server, tmp_path, "good", audio_sha256=hashlib.sha256(zip_bytes).hexdigest())
    assert resolve_inputs(by_digest, fetch=False).source.fingerprint == fetched
    assert resolve_inputs(by_digest, fetch=True).source.fingerprint == fetched
    assert len(server.seen) == count, "the server was not asked"


def test_a_download_that_is_no_zip_is_not_kept(server, tmp_path):
    with pytest.raises(FetchFailed, match="the downloaded file is not usable: it is a web page"):
        resolve_inputs(recipe(server, tmp_path, "page"), fetch=True)
    assert not [path for path in (tmp_path / "store" / "shared").rglob("*") if path.is_file()]


def test_a_zip_cut_by_a_server_that_understates_its_length_is_not_kept(server, tmp_path, zip_bytes):
    with pytest.raises(FetchFailed, match="is not usable: it is a zip that is cut short"):
        resolve_inputs(recipe(server, tmp_path, "understates"), fetch=True)


def test_an_adapter_is_downloaded_the_same_way_and_checked(server, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "pipeline.request.resolve.check_request", lambda recipe, weights, lora: None
    )  # tested elsewhere
    data = zipped(tmp_path / "d.zip", clips("a"))
    server.content = (2).to_bytes(8, "little") + b"{}"
    fields = {"model": "tiny-base", "store": str(tmp_path / "store")}
    address = f"http://127.0.0.1:{server.server_port}"
    asked = read_recipe(str(data), {**fields, "lora_checkpoint_url": f"{address}/good/x.safetensors"})
    assert resolve_inputs(asked, fetch=False).why_no_lora.startswith("unknown until fetched")
    found = resolve_inputs(asked, fetch=True)
    assert found.lora_checkpoint.read_bytes() == server.content
    assert found.lora_digest == f"sha256:{hashlib.sha256(server.content).hexdigest()}"
    with pytest.raises(FetchFailed, match=r"lora_checkpoint_url .* is not an adapter"):
        resolve_inputs(read_recipe(str(data), {**fields, "lora_checkpoint_url": f"{address}/page/x"}), fetch=True)


@pytest.mark.parametrize("source", ["zip", "data"])
def test_the_digest_of_a_local_zip_is_checked_too(tmp_path, source):
    import base64

    from pipeline.errors import RecipeError

    path = zipped(tmp_path / "d.zip", clips("a"))
    content = path.read_bytes()
    data = str(path) if source == "zip" else f"data:application/zip;base64,{base64.b64encode(content).decode()}"
    fields = {"model": "tiny-base", "store": str(tmp_path / "store")}
    right = read_recipe(data, {**fields, "audio_sha256": hashlib.sha256(content).hexdigest()})
    assert resolve_inputs(right, fetch=True).source.members
    with pytest.raises(RecipeError, match="audio_sha256: the file's sha256 is"):
        resolve_inputs(read_recipe(data, {**fields, "audio_sha256": "0" * 64}), fetch=True)
