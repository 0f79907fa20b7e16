"""schemathesis against the OpenAPI document: no server error, no answer that the document does not describe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.serve_conformance.test_clients import Server

pytestmark = pytest.mark.skipif("SA3_TEST_SERVE" not in os.environ, reason="run by make test-serve")


@pytest.mark.skipif(find_spec("schemathesis") is None, reason="needs schemathesis")
def test_the_server_answers_as_its_document_says(tmp_path):
    started = Server(tmp_path / "store")
    started.start()
    beside = Path(sys.executable).with_name("schemathesis")
    command = [str(beside) if beside.exists() else str(shutil.which("schemathesis")), "run", "--no-color"]
    # Rules between fields refuse some bodies that a schema allows, and a number may come as text.
    command += ["--exclude-checks", "positive_data_acceptance,negative_data_rejection"]
    command += ["--max-examples", "30", "--phases", "coverage,fuzzing"]
    try:
        done = subprocess.run([*command, f"{started.base}/openapi.json"], capture_output=True, text=True, cwd=tmp_path)
    finally:
        started.stop()
    assert done.returncode == 0, done.stdout[-6000:]
