"""Two commands at once on one store share work or wait for each other, and never damage each other's files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache.errors import LockHeld
from cache.store import Store
from pipeline.execution.locks import MAINTENANCE, maintenance_lock, run_lock
from pipeline.maintenance.verify import artifact_damages
from pipeline.maintenance.verify_references import reference_damages
from pipeline.plan.stage_run import StageRun, State
from stages.encode.stage import STAGE, EncodeParams
from stages.errors import Stopped
from tests.small_datasets import clips, zipped

ROOT = Path(__file__).parents[1]
WAIT_SECONDS = 90


@dataclass
class Command:
    """A command line at work in another process."""

    process: subprocess.Popen[str]
    errors: Path

    def said(self) -> str:
        return self.errors.read_text()

    def finish(self) -> dict:
        out, _ = self.process.communicate(timeout=WAIT_SECONDS)
        assert self.process.returncode == 0, self.said()
        return json.loads(out)["artifacts"]


def started(root: Path, data: Path, name: str) -> Command:
    flags = ["--model", "tiny-base", "--store", str(root / "artifacts"), "--workers", "1", "--threads", "1", "--json"]
    errors = root / f"{name}.txt"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "encode", str(data), *flags],
        cwd=root,
        env=env,
        stdout=subprocess.PIPE,
        stderr=errors.open("w"),
        text=True,
    )
    return Command(process, errors)


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def runs_blocked(store: Store) -> Iterator[None]:
    """Runs that want to begin wait until the block is left."""
    with store.lock(*MAINTENANCE):
        yield


def test_two_encodes_of_overlapping_datasets_at_once_encode_each_clip_once(tmp_path):
    names, store = [f"clip{number}" for number in range(6)], Store(tmp_path / "artifacts")
    files = clips(*names, seconds=0.2)
    first, second = (
        zipped(tmp_path / f"{part}.zip", {name: files[name] for name in files if name.partition(".")[0] in some})
        for part, some in (("first", names[:4]), ("second", names[2:]))
    )
    with runs_blocked(store):
        commands = [started(tmp_path, data, data.stem) for data in (first, second)]
        wait_for(lambda: all("waiting for process" in command.said() for command in commands))
    counts = [command.finish()["encode"]["facts"] for command in commands]
    assert [count["num_clips"] for count in counts] == [4, 4]
    assert sum(count["num_encoded"] for count in counts) == 6
    assert sum(count["num_reused"] for count in counts) == 2
    receipts = store.receipts()
    assert len(receipts) == 4
    assert [damage for receipt in receipts for damage in artifact_damages(store, receipt)] == []
    assert list(reference_damages(store, receipts, [])) == []
    assert list((store.root / "scratch").iterdir()) == []


def test_ctrl_c_ends_the_wait(tmp_path):
    data = zipped(tmp_path / "clips.zip", clips("one", seconds=0.2))
    with runs_blocked(Store(tmp_path / "artifacts")):
        stopped = started(tmp_path, data, "stopped")
        wait_for(lambda: "waiting for process" in stopped.said())
        stopped.process.send_signal(signal.SIGINT)
        assert stopped.process.wait(timeout=10) == 130
    assert "stopped while waiting for process" in stopped.said()
    assert not (tmp_path / "artifacts" / "scratch").exists()


@pytest.mark.slow
def test_the_same_encode_twice_at_once_is_done_once(tmp_path):
    data, store = zipped(tmp_path / "clips.zip", clips("one", "two", seconds=0.2)), Store(tmp_path / "artifacts")
    with runs_blocked(store):
        commands = [started(tmp_path, data, name) for name in ("first", "second")]
        wait_for(lambda: all("waiting for process" in command.said() for command in commands))
    facts = [command.finish()["encode"]["facts"] for command in commands]
    assert facts[0] == facts[1]
    assert facts[0]["num_encoded"] == 2
    assert sum("encode  2/2" in command.said() for command in commands) == 1


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "artifacts")


def run_of(identity: str, autoencoder: str = "same") -> StageRun:
    return StageRun(
        stage=STAGE,
        params=EncodeParams(model="tiny-base"),
        inputs={},
        components={"autoencoder": autoencoder},
        fingerprint=identity,
        identity=identity,
        state=State.MISS,
        reason="",
    )


def test_encodings_with_another_autoencoder_do_not_wait_for_each_other(store):
    said: list[str] = []
    with run_lock(store, run_of("a" * 64), said.append, lambda: False):
        with run_lock(store, run_of("b" * 64, "other"), said.append, lambda: False):
            pass
        refused = pytest.raises(Stopped, match="while waiting for process")
        with refused, run_lock(store, run_of("b" * 64), said.append, lambda: True):
            pass
    assert len(said) == 1
    assert f"process {os.getpid()}" in said[0] and "since" in said[0]
    assert said[0].endswith("which is encoding with the same autoencoder; Ctrl-C ends the wait")


def test_a_waiting_run_continues_as_soon_as_the_lock_is_released(store):
    looks: list[bool] = []
    holder = store.lock("encode", "a" * 64)
    holder.__enter__()

    def stop() -> bool:
        looks.append(True)
        if len(looks) == 3:
            holder.__exit__(None, None, None)
        return False

    with run_lock(store, run_of("a" * 64), lambda line: None, stop):
        assert len(looks) == 3
        with pytest.raises(LockHeld), store.lock("encode", "a" * 64):
            pass


def test_maintenance_and_a_beginning_run_exclude_each_other(store):
    with (
        maintenance_lock(store, lambda line: None),
        pytest.raises(Stopped),
        maintenance_lock(store, lambda line: None, lambda: True),
    ):
        pass
