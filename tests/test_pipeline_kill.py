"""Runs ended by real signals: the same command resumes them and ends with the same adapter bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills with POSIX signals")

ROOT = Path(__file__).parents[1]
WAIT_SECONDS = 120


def request(root: Path, data: Path) -> list[str]:
    places = ["--store", str(root / "artifacts"), "--output", str(root / "output")]
    sizes = [
        "--model",
        "tiny-base",
        "--pre-encode",
        "--number-of-steps",
        "12",
        "--checkpoint-every",
        "2",
        "--rank",
        "2",
    ]
    return [sys.executable, "-m", "pipeline", "run", str(data), *places, *sizes, "--workers", "1", "--threads", "1"]


def write_clips(path: Path) -> Path:
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(6):
            file = path.with_name("clip.wav")
            soundfile.write(file, rng.uniform(-0.5, 0.5, (22_050 * (index + 1), 2)), 44_100)
            archive.write(file, f"clip{index}.wav")
            archive.writestr(f"clip{index}.txt", f"noise number {index}")
    return path


def start(root: Path, data: Path) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(request(root, data), cwd=root, env=env, stderr=subprocess.PIPE, text=True)


def finish(root: Path, data: Path) -> str:
    process = start(root, data)
    _, said = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0, said
    return said


def signalled(root: Path, data: Path, when: Callable[[Path], bool], number: int) -> tuple[int, str]:
    """Start the command, send a signal as soon as `when(store)` holds, wait for the end."""
    process = start(root, data)
    deadline = time.monotonic() + WAIT_SECONDS
    while not when(root / "artifacts") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=WAIT_SECONDS)
    return process.returncode, said


def ingest_begun(store: Path) -> bool:
    return any((store / "shared" / "prepared").glob("*/*.flac"))


def encode_begun(store: Path) -> bool:
    return any((store / "scratch").glob("encode-*"))


def training_begun(store: Path) -> bool:
    return any((store / "scratch").glob("train-*/checkpoints/*/*"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("data") / "clips.zip")


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> bytes:
    root = tmp_path_factory.mktemp("whole")
    finish(root, data)
    return (root / "output" / "clips.safetensors").read_bytes()


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param([training_begun], id="in training"),
        pytest.param([ingest_begun, encode_begun, training_begun], id="in every stage", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_with_the_same_adapter(data, uninterrupted, tmp_path, moments):
    for begun in moments:
        code, said = signalled(tmp_path, data, begun, signal.SIGKILL)
        assert code == -signal.SIGKILL, said
        assert not (tmp_path / "output" / "clips.safetensors").exists()
    said = finish(tmp_path, data)
    assert "goes on" in said
    assert (tmp_path / "output" / "clips.safetensors").read_bytes() == uninterrupted
    assert not list((tmp_path / "artifacts").rglob("*.tmp"))


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, id="Ctrl-C"), pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.slow)],
)
def test_a_stop_signal_saves_the_current_step_and_the_same_command_resumes(data, uninterrupted, tmp_path, number):
    code, said = signalled(tmp_path, data, training_begun, number)
    assert code == 128 + number
    assert len(list((tmp_path / "output").glob("clips_*_stopped.safetensors"))) == 1
    assert "stopped at step" in said
    assert "run the same command again" in said
    assert "stopped earlier; continues from there" in finish(tmp_path, data)
    assert (tmp_path / "output" / "clips.safetensors").read_bytes() == uninterrupted
