"""Runs of ingest and encode are killed (SIGKILL) at random moments, or run out of disk; the next run finishes.

The resume law: the store is then, byte for byte, that of a run nobody stopped; nothing was encoded twice but what lay
in the open shard; no stray file is left. Moments are drawn over time, and over the calls that make work last.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cache.manifest import read_rows
from cache.shards import formats, load
from cache.store import Store
from pipeline.maintenance.verify import verify
from stages.records import Clip, EncodedClip
from tests import runs_to_kill
from tests.small_datasets import sound, tone, zipped

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
NUM_CLIPS = 9
REBUILT = ("locks", "digests.sqlite", "registry-", "receipt.json")
"""Not compared: times and caches."""


@dataclass(kw_only=True)
class Driver:
    """The process that forks runs, and a dataset for them."""

    process: subprocess.Popen[str]
    data: Path

    def ask(self, root: Path, format: str, **ending: Any) -> dict[str, Any]:
        """One run in a folder, and how it ended."""
        root.mkdir(parents=True, exist_ok=True)
        request = {"root": str(root), "data": str(self.data), "format": format, **ending}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@dataclass(kw_only=True)
class UninterruptedRun:
    """The files of an uninterrupted run."""

    files: dict[str, bytes]
    length_of: dict[str, int]
    """Samples of each clip's audio, by item key."""
    seconds: float
    calls: int
    largest: int
    """Bytes of the largest file written."""
    encoded: Counter = field(default_factory=Counter)


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator[Driver]:
    place = tmp_path_factory.mktemp("data")
    files: dict[str, bytes] = {}
    for number in range(NUM_CLIPS):  # each of its own length, so that the autoencoder's input names it
        files[f"clip{number}.wav"] = sound(tone(0.2 + 0.013 * number, hz=200.0 + 30 * number))
        files[f"clip{number}.txt"] = f"tone number {number}".encode()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    process = subprocess.Popen(
        [sys.executable, runs_to_kill.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert process.stdout is not None
    assert "ready" in process.stdout.readline()
    yield Driver(process=process, data=zipped(place / "clips.zip", files))
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=20)


@pytest.fixture(scope="module")
def whole(driver, tmp_path_factory) -> dict[str, UninterruptedRun]:
    """The uninterrupted store of each format."""
    return {format: uninterrupted(driver, tmp_path_factory.mktemp(format), format) for format in formats()}


def uninterrupted(driver: Driver, root: Path, format: str) -> UninterruptedRun:
    ended = driver.ask(root, format)
    assert ended["code"] == 0, ended["said"]
    store = Store(root / "artifacts")
    (ingest,), (encode,) = store.receipts("ingest"), store.receipts("encode")
    clips = read_rows(store.directory("ingest", ingest.fingerprint) / "manifest.parquet", Clip)
    rows = read_rows(store.directory("encode", encode.fingerprint) / "manifest.parquet", EncodedClip)
    lengths = {clip.clip_id: clip.num_samples for clip in clips}
    silence = {encode.facts["silence"]["item_key"]: encode.facts["silence"]["num_frames"] * 4096}
    assert verify(store).damages == ()
    files = kept(root / "artifacts")
    return UninterruptedRun(
        files=files,
        length_of={row.item_key: lengths[row.clip_id] for row in rows} | silence,
        seconds=ended["seconds"],
        calls=ended["calls"],
        largest=max(len(content) for content in files.values()),
        encoded=encoded(root),
    )


def kept(store: Path) -> dict[str, bytes]:
    """Every file of a store that the law is about."""
    files = {path.relative_to(store).as_posix(): path for path in store.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not any(part in name for part in REBUILT)}


def encoded(root: Path) -> Counter:
    """How often audio of each length went through the autoencoder."""
    file = root / "encoded.txt"
    return Counter(map(int, file.read_text().split())) if file.exists() else Counter()


def sealed_lengths(root: Path, format: str, known: UninterruptedRun) -> set[int]:
    """Lengths of the clips whose latents lie in a sealed shard."""
    shards = (root / "artifacts" / "shared" / "latents").glob(f"*{load(format).SUFFIX}")
    return {known.length_of[key] for shard in shards for key in load(format).Reader(shard).keys}


def interrupted(
    driver: Driver, root: Path, format: str, known: UninterruptedRun, ending: dict[str, Any]
) -> dict[str, Any]:
    """One run that may be stopped; nothing that was sealed before is encoded in it."""
    sealed, before = sealed_lengths(root, format, known), encoded(root)
    ended = driver.ask(root, format, **ending)
    again = encoded(root) - before
    assert not sealed & again.keys(), f"encoded again although sealed: {sealed & again.keys()}\n{ended['said']}"
    assert all(count == 1 for count in again.values())
    return ended


def finish(driver: Driver, root: Path, format: str, known: UninterruptedRun, num_stops: int) -> None:
    """The next run finishes, and obeys the resume law."""
    ended = interrupted(driver, root, format, known, {})
    assert ended["code"] == 0, ended["said"]
    store = root / "artifacts"
    assert kept(store) == known.files
    assert list((store / "scratch").iterdir()) == []
    assert not list(store.rglob("*.tmp"))
    twice = sum((encoded(root) - known.encoded).values())
    assert twice <= num_stops * runs_to_kill.ITEMS_PER_SHARD
    for receipt in Store(store).receipts():
        assert Store(store).differences(receipt) == []


def drawn_kill(chance: random.Random, known: UninterruptedRun) -> dict[str, Any]:
    """A moment in time, or one of the calls that make work last."""
    if chance.random() < 0.5:
        return {"after": chance.uniform(0, known.seconds)}
    return {"at": chance.randint(1, known.calls)}


@pytest.mark.parametrize("kills", [pytest.param(2, id="a few"), pytest.param(110, id="many", marks=pytest.mark.slow)])
@pytest.mark.parametrize("format", formats())
def test_a_killed_run_is_finished_by_the_next_one_with_the_same_bytes(driver, whole, tmp_path, format, kills):
    chance, known, killed, stores = random.Random(f"{format} {kills}"), whole[format], 0, 0
    while killed < kills:
        stores += 1
        root = tmp_path / str(stores)
        stops = killed_a_few_times(driver, root, format, known, chance)
        finish(driver, root, format, known, stops)
        killed += stops
        shutil.rmtree(root)
    assert killed >= kills
    print(f"{format}: {killed} runs killed in {stores} stores")


def killed_a_few_times(driver: Driver, root: Path, format: str, known: UninterruptedRun, chance: random.Random) -> int:
    """Kill up to four runs, one after the other, in one store; how many were still at work when their moment came."""
    for stops in range(4):
        ended = interrupted(driver, root, format, known, drawn_kill(chance, known))
        if ended["code"] == 0:
            return stops
        assert ended["code"] == -signal.SIGKILL, ended["said"]
    return 4


@pytest.mark.parametrize("times", [pytest.param(1, id="a few"), pytest.param(17, id="many", marks=pytest.mark.slow)])
@pytest.mark.parametrize("format", formats())
def test_a_full_disk_is_reported_and_the_next_run_finishes(driver, whole, tmp_path, format, times):
    chance, known = random.Random(f"full {format} {times}"), whole[format]
    for number in range(times):
        root = tmp_path / str(number)
        ended = interrupted(driver, root, format, known, {"fsize": chance.randint(0, known.largest - 1)})
        assert ended["code"] == 1, ended["said"]
        assert "error: " in ended["said"] and "Traceback" not in ended["said"], ended["said"]
        finish(driver, root, format, known, 1)
        shutil.rmtree(root)
    print(f"{format}: {times} runs on a full disk")
