"""A run that is stopped anywhere, also by kill -9, is continued to the bytes of an uninterrupted run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from joblib.externals.loky.process_executor import BrokenProcessPool

from stages.contract import Resources
from stages.errors import StageError, Stopped
from stages.ingest import workers
from stages.ingest.run import MANIFEST
from tests.small_datasets import clips, counted, folder, run, sound, workspace, zipped

NAMES = [f"clip{number}" for number in range(8)]


@pytest.fixture
def data(tmp_path):
    return zipped(tmp_path / "d.zip", clips(*NAMES, rate=48000, seconds=1.0))


def everything(place: Path) -> dict[str, bytes]:
    """Manifest and prepared files."""
    files = [place / "scratch" / MANIFEST, *sorted((place / "shared").rglob("*"))]
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in files if path.is_file()}


def prepared(place: Path) -> dict[str, int]:
    """Completely prepared clips, and when."""
    return {path.name: path.stat().st_mtime_ns for path in (place / "shared").rglob("*.json")}


@pytest.mark.parametrize(
    "resources", [Resources(workers=1), Resources(workers=2, engine="threading")], ids=["one", "two"]
)
@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_stopped_run_is_continued_without_preparing_a_clip_twice(tmp_path, data, monkeypatch, resources, after):
    seen: list[workers.Job] = []
    monkeypatch.setattr(workers, "prepare", counted(workers.prepare, seen))
    asked = count()
    stopping = workspace(tmp_path / "stopped", resources, should_stop=lambda: next(asked) >= after)
    with pytest.raises(Stopped, match=f"after preparing {after} of {len(NAMES)} clips; run the same command again"):
        run(data, stopping)
    assert len(seen) == len(prepared(tmp_path / "stopped")) == after
    run(data, workspace(tmp_path / "stopped", resources))
    assert len(seen) == len(NAMES)
    assert len({job.member.name for job in seen}) == len(NAMES)

    run(data, workspace(tmp_path / "whole"))
    assert everything(tmp_path / "stopped") == everything(tmp_path / "whole")


RUN = """
import sys, time
from pathlib import Path
from stages.contract import Resources
from tests.small_datasets import run, workspace
data, place, number = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
run(data, workspace(place, Resources(workers=number), progress=lambda *_, **figures: time.sleep(0.02)))
"""


def started(data: Path, place: Path, workers: int) -> subprocess.Popen[bytes]:
    """Start the run in a process group of its own."""
    command = [sys.executable, "-c", RUN, str(data), str(place), str(workers)]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)


def waited_for(what) -> bool:
    """True once `what()` is true; False after twenty seconds."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if what():
            return True
        time.sleep(0.001)
    return False


def test_kill_9_leaves_nothing_incomplete_and_the_next_run_continues(tmp_path, data):
    place, kept = tmp_path / "killed", {}
    for num_clips in (1, 4, 6):
        process = started(data, place, workers=1)
        assert waited_for(lambda wanted=num_clips: len(prepared(place)) >= wanted)
        process.kill()
        process.wait()
        process.stderr.close()
        assert not (place / "scratch" / MANIFEST).exists()
        now = prepared(place)
        assert kept.items() <= now.items(), "a clip that was whole was made again"
        kept = now
    assert len(kept) < len(NAMES), "the last kill came too late to show anything"
    run(data, workspace(place))
    assert kept.items() <= prepared(place).items()

    run(data, workspace(tmp_path / "whole"))
    assert everything(place) == everything(tmp_path / "whole")


def test_workers_of_a_killed_run_end_and_leave_no_files_behind(tmp_path, data):
    place = tmp_path / "killed"
    process = started(data, place, workers=2)
    assert waited_for(lambda: len(prepared(place)) >= 2)
    started_by_it = children(process.pid)
    assert len(started_by_it) >= 2
    process.kill()
    process.wait()
    process.stderr.close()
    assert waited_for(lambda: not any(is_alive(child) for child in started_by_it))
    run(data, workspace(place))

    run(data, workspace(tmp_path / "whole"))
    assert everything(place) == everything(tmp_path / "whole")


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_ctrl_c_in_a_terminal_lets_started_clips_finish(tmp_path, data):
    """The terminal signals workers too; only the run itself may react."""
    heeding = "asked = []\nsignal.signal(signal.SIGINT, lambda *_: asked.append(1))\n"
    code = f"import signal{RUN}".replace("run(data", f"{heeding}run(data")
    code = code.replace("progress=", "should_stop=lambda: time.sleep(0.3) or bool(asked), progress=")
    place = tmp_path / "stopped"
    command = [sys.executable, "-c", code, str(data), str(place), "2"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    assert waited_for(lambda: sum(map(ignores_ctrl_c, children(process.pid))) >= 3 and prepared(place))
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 1
    assert "stages.errors.Stopped: stopped after preparing" in said
    assert 1 <= len(prepared(place)) < len(NAMES)
    assert not list((place / "shared").rglob("*.tmp"))


def children(pid: int) -> list[int]:
    """Child processes: two workers and joblib's resource tracker, once all have started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ignores_ctrl_c(pid: int) -> bool:
    try:
        ignored = Path(f"/proc/{pid}/status").read_text().partition("SigIgn:")[2].split()[0]
    except (OSError, IndexError):
        return False
    return bool(int(ignored, 16) >> (signal.SIGINT - 1) & 1)


@pytest.mark.parametrize("asked", [True, False])
def test_a_worker_that_dies_is_an_error_unless_a_stop_was_requested(tmp_path, data, monkeypatch, asked):
    def broken(calls):
        list(calls)
        raise BrokenProcessPool("a worker is gone")

    asking = iter([False] * len(NAMES))
    monkeypatch.setattr(workers.joblib, "Parallel", lambda **_: broken)
    work = workspace(tmp_path, Resources(workers=2), should_stop=lambda: next(asking, asked))
    with pytest.raises(StageError) as caught:
        run(data, work)
    assert isinstance(caught.value, Stopped) == asked
    assert asked or "Run the same command again with fewer processes, such as --workers 1" in str(caught.value)


def test_a_killed_worker_is_an_error(tmp_path, data):
    code = RUN.replace("progress=", "should_stop=lambda: bool(time.sleep(0.3)), progress=")
    command = [sys.executable, "-c", code, str(data), str(tmp_path / "w"), "2"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    assert waited_for(lambda: [child for child in children(process.pid) if is_worker(child)])
    os.kill(next(filter(is_worker, children(process.pid))), signal.SIGKILL)
    said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 1
    assert "stages.errors.StageError: a worker of ingest was killed" in said


def is_worker(pid: int) -> bool:
    try:
        return b"joblib.externals.loky.backend.popen_loky_posix" in Path(f"/proc/{pid}/cmdline").read_bytes().split(
            b"\0"
        )
    except OSError:
        return False


SLOW_HZ = 192_001
"""A rate that shares no factor with the model's: resampling it takes seconds."""


@pytest.fixture
def slow_data(tmp_path):
    """Two recordings that take many seconds each."""
    noise = np.random.default_rng(0).integers(-9000, 9000, (90 * SLOW_HZ, 2), np.int16)
    files = {}
    for number in range(2):
        noise[0] = number
        files |= {f"{number}.wav": sound(noise, SLOW_HZ, subtype="PCM_16"), f"{number}.txt": b"noise"}
    return folder(tmp_path / "slow", files)


@pytest.mark.parametrize("number", [1, 2])
def test_ctrl_c_ends_a_run_within_seconds_even_during_long_recordings(tmp_path, slow_data, number):
    heeding = "asked = []\nsignal.signal(signal.SIGINT, lambda *_: asked.append(1))\n"
    code = f"import signal{RUN}".replace("run(data", f"{heeding}print('on', flush=True)\nrun(data")
    code = code.replace("progress=", "should_stop=lambda: bool(asked), progress=")
    code = code.replace("sleep(0.02)))", "sleep(0.02)), native_samples=380 * 44100)")
    place = tmp_path / "stopped"
    command = [sys.executable, "-c", code, str(slow_data), str(place), str(number)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"on\n"
    if number == 2:
        assert waited_for(lambda: sum(map(ignores_ctrl_c, children(process.pid))) >= 3)
    time.sleep(1.5)
    assert process.poll() is None, "the recordings must take longer than this"
    os.killpg(process.pid, signal.SIGINT)
    begun = time.monotonic()
    said = process.communicate(timeout=30)[1].decode()
    assert time.monotonic() - begun < 2 + 2  # two seconds, and the same again for a machine that is busy
    assert "stages.errors.Stopped: stopped after preparing 0 of 2" in said, said
    assert not [path for path in place.rglob("*") if path.is_file()]
