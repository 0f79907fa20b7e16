"""The page in a real browser, where playwright and a Chromium are at hand; what it is made of everywhere."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import wave
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import server
from tests.test_serve_kill import Killed

PAGE = Path(__file__).parents[1] / "pipeline" / "serve" / "http" / "page"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.mark.parametrize("file", sorted(PAGE.iterdir()), ids=lambda file: file.name)
def test_the_page_asks_no_other_server_and_writes_no_html_from_texts(file):
    text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"https?://|innerHTML|insertAdjacentHTML|document\.write|eval\(|style=|onclick=", text) == []


@pytest.mark.parametrize("path", ["/", "/page.js", "/page-zip.js", "/page.css"])
def test_the_page_needs_no_key_to_be_shown(tmp_path, path):
    with server(tmp_path, keys=("key-of-anna:0123456789",)) as client:
        assert client.get(path).status_code == 200


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_the_zip_that_the_page_makes_is_a_zip(tmp_path):
    script = f"""
    import {{ zipped }} from "{PAGE / "page-zip.js"}";
    const text = new Blob(["warm \\u{{1F3B9}}"]);
    const files = [{{ name: "ü/a.wav", blob: new Blob(["abc"]) }}, {{ name: "ü/a.txt", blob: text }}];
    process.stdout.write(new Uint8Array(await (await zipped(files)).arrayBuffer()));
    """
    (tmp_path / "make.mjs").write_text(script)
    made = subprocess.run(["node", str(tmp_path / "make.mjs")], capture_output=True, check=True).stdout
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        assert archive.testzip() is None and archive.namelist() == ["ü/a.wav", "ü/a.txt"]
        assert archive.read("ü/a.txt").decode() == "warm 🎹"


@contextlib.contextmanager
def browser(**options: Any) -> Iterator[Any]:
    """A page of a headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened.new_context(**options).new_page()
        opened.close()


def write_clip(path: Path) -> Path:
    """A second of silence."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    return path


@pytest.mark.parametrize("width", [1100, 390])
def test_clips_with_captions_typed_beside_them_are_trained_on(tmp_path, width):
    with browser(viewport={"width": width, "height": 800}) as page:
        faults = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        started = Killed(tmp_path / "store")
        started.start()
        try:
            page.goto(f"http://127.0.0.1:{started.port}/")
            page.wait_for_selector("#fields select")
            page.set_input_files("#files", [write_clip(tmp_path / "a.wav"), write_clip(tmp_path / "b.wav")])
            assert page.is_disabled("#send")
            for number, caption in enumerate(page.query_selector_all("#clips input")):
                caption.fill(f"sound {number}")
            page.select_option("[name=model]", "tiny-base")
            page.click("#send")
            page.wait_for_selector(".job a")
            assert page.text_content(".job a") == "adapter.safetensors"
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            (archive,) = (tmp_path / "store").glob("serve/uploads/*/clips.zip")
        finally:
            started.kill("none")
        assert faults == []
        assert zipfile.ZipFile(archive).read("b.txt") == b"sound 1"


def test_a_stranger_s_text_is_shown_as_text(tmp_path):
    with browser() as page:
        started = Killed(tmp_path / "store")
        started.start()
        try:
            body = {"audio_data_url": "https://example.com/a.zip", "<img src=x onerror=alert(1)>": 1}
            started.ask("POST", "/fal-ai/stable-audio-3-trainer", body)
            dialogs: list[object] = []
            page.on("dialog", dialogs.append)
            page.goto(f"http://127.0.0.1:{started.port}/")
            page.click(".job summary")
            page.wait_for_selector(".job pre:has-text('<img src=x')")
            assert page.query_selector(".job pre img") is None and dialogs == []
        finally:
            started.kill("none")
