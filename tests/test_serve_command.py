"""The command serve: what it refuses to start with, and what it says first."""

from __future__ import annotations

import importlib.util
import socket

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.serve.server import _first_words, _listener, _only_server
from pipeline.serve.settings import Settings


def said(*arguments: str) -> str:
    """What the command says before it refuses."""
    done = CliRunner().invoke(app, ["serve", *arguments])
    assert done.exit_code == 1
    return done.output


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert "[serve]" in said("--store", str(tmp_path))


def test_a_host_that_others_reach_is_refused_without_a_key(tmp_path):
    assert "--key-file" in said("--store", str(tmp_path), "--host", "0.0.0.0")


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port} cannot be listened on" in said("--store", str(tmp_path), "--port", port)


def test_a_second_server_of_a_store_is_refused(tmp_path):
    (tmp_path / "serve").mkdir()
    _only_server(tmp_path / "serve" / "server.lock")
    assert "another server uses" in said("--store", str(tmp_path), "--port", "0")


@pytest.mark.parametrize("given", [["--tls-cert", "c.pem"], ["--tls-cert", "c.pem", "--tls-key", "k.pem"]])
def test_a_certificate_needs_its_key_and_both_their_files(tmp_path, given):
    assert "--tls" in said("--store", str(tmp_path), *given)


def test_the_first_line_is_the_address_of_the_page_or_what_python_needs(tmp_path):
    settings = Settings(store=tmp_path, port=0)
    with _listener(settings) as listener:
        port = listener.getsockname()[1]
        assert f"open http://127.0.0.1:{port}/" in _first_words(settings, listener, own=False)
        assert f"FAL_RUN_HOST=localhost:{port}/run" in _first_words(settings, listener, own=True)
