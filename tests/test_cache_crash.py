"""Writers are killed (SIGKILL) at random moments, or run out of disk space: the store never counts a partial result."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache.errors import LockHeld
from cache.manifest import read_rows, write_rows
from cache.receipt import Receipt
from cache.shard_pool import ShardPool
from cache.shards import formats, load
from cache.store import Store
from stages.records import PromptRow
from tests import writers_to_kill as writers

PROGRAM = Path(writers.__file__)

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
KILLS = [
    pytest.param(4, id="a few"),
    pytest.param(60, id="many", marks=pytest.mark.slow),
]
NUM_ITEMS = 40


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A writer that has come to its work; dead when the block is left."""
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def kill_within(seconds: float, *arguments: object) -> None:
    """Start a writer and kill it (SIGKILL) at a random moment, unless it is done by then."""
    with running(*arguments) as process:
        time.sleep(random.uniform(0, seconds))
        assert process.poll() in (None, 0), "the writer failed before it was killed"
        process.kill()
        process.wait()


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_commit_leaves_complete_artifacts_only_and_the_next_writer_continues(tmp_path, kills):
    store = Store(tmp_path)
    for _ in range(kills):
        kill_within(0.15, "artifacts", tmp_path)
        for receipt in store.receipts():
            assert store.find(receipt.stage, receipt.fingerprint) == receipt
            assert store.differences(receipt) == []

    name, scratch = "d" * 64, store.scratch("train", writers.IDENTITY)
    (scratch / "deep").mkdir(parents=True, exist_ok=True)
    (scratch / "steps.txt").write_text("step\n")
    with store.lock("train", writers.IDENTITY):
        receipt = Receipt(stage="train", fingerprint=name, identity=writers.IDENTITY, version=1)
        store.commit("train", name, scratch, receipt)
    committed = store.find("train", name)
    assert committed is not None and store.differences(committed) == []
    assert temporaries(tmp_path) == []


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_manifest_is_the_old_one_or_the_new_one(tmp_path, kills):
    file = tmp_path / "prompts.parquet"
    for _ in range(kills):
        kill_within(0.1, "manifests", file)
        if file.exists():
            rows = read_rows(file, PromptRow)
            assert {row.num_tokens for row in rows} in ({50}, {60})
            assert [row.row for row in rows] == list(range(rows[0].num_tokens))

    write_rows(file, [], PromptRow)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("format", formats())
def test_a_run_killed_again_and_again_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path, format, kills):
    uninterrupted, killed, num_items = tmp_path / "uninterrupted", tmp_path / "killed", 10 * kills
    writers.shards(uninterrupted, format, num_items)
    for _ in range(kills):
        kill_within(0.06, "shards", killed, format, num_items)
        for name in ShardPool(killed, format).shards():
            ShardPool(killed, format).verify_shard(name)

    writers.shards(killed, format, num_items)
    ShardPool(killed, format).write(
        [("z", writers.values_of(writers.key_of(1)))], {}
    )  # a writer of something else sweeps
    ShardPool(uninterrupted, format).write([("z", writers.values_of(writers.key_of(1)))], {})

    assert temporaries(killed) == []
    suffix = load(format).SUFFIX
    contents = [
        {path.name: path.read_bytes() for path in folder.glob(f"*{suffix}")} for folder in (uninterrupted, killed)
    ]
    assert contents[0] == contents[1]
    keys = [writers.key_of(number) for number in range(num_items)]
    assert ShardPool(killed, format).locate(keys) == ShardPool(uninterrupted, format).locate(keys)


@pytest.mark.parametrize("format", formats())
def test_several_processes_write_overlapping_items_at_once_without_harm(tmp_path, format):
    slices = [
        ("0", "3"),
        ("0", "3"),
        ("1", "3"),
        ("6", "5"),
    ]  # the same shards, others of the same items, a later start
    with running("shards", tmp_path, format, NUM_ITEMS, *slices[0]) as first:
        others = [
            subprocess.Popen([sys.executable, str(PROGRAM), "shards", str(tmp_path), format, str(NUM_ITEMS), *part])
            for part in slices[1:]
        ]
        codes = [process.wait(timeout=60) for process in (first, *others)]

    assert codes == [0, 0, 0, 0]
    pool, keys = ShardPool(tmp_path, format), [writers.key_of(number) for number in range(NUM_ITEMS)]
    locations = pool.locate(keys)
    for key in keys:
        assert (pool.read(locations[key]) == writers.values_of(key)).all()
    for name in pool.shards():
        pool.verify_shard(name)
    assert temporaries(tmp_path) == []


def test_a_lock_names_pid_and_command_of_its_holder_until_that_one_is_killed(tmp_path):
    store = Store(tmp_path)
    with running("holding", tmp_path) as holder:
        with pytest.raises(LockHeld) as caught, store.lock("train", writers.IDENTITY):
            pass
        assert f"process {holder.pid} on " in str(caught.value)
        assert "writers_to_kill.py holding" in str(caught.value)
        with store.lock("train", "e" * 64):
            pass  # another identity is free

        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with store.lock("train", writers.IDENTITY):
            pass


ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from cache.files.atomic_files import atomic_write_bytes
from cache.manifest import write_rows
from cache.shards import formats, load
from stages.records import PromptRow
from tests import writers_to_kill as writers

folder = Path(sys.argv[1])
items = [("k", np.random.default_rng(0).standard_normal((4000, 16)).astype("float32"))]
row = dict(prompt="rain " * 9, shard="s", num_tokens=1, checksum="0")
rows = [PromptRow(prompt_key=f"{n:032x}", row=n, **row) for n in range(999)]
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))
attempts = {name: lambda name=name: load(name).write(folder / name / "shard", items, {}) for name in formats()}
attempts["manifest"] = lambda: write_rows(folder / "manifest" / "m.parquet", rows, PromptRow)
attempts["plain"] = lambda: atomic_write_bytes(folder / "plain" / "receipt.json", b"x" * 20000)
for name, attempt in attempts.items():
    try:
        attempt()
        print(name, "wrote beyond the limit")
    except Exception as error:
        print(name, type(error).__name__, error)
"""


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path):
    pytest.importorskip("resource")
    run = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, str(tmp_path)],
        cwd=PROGRAM.parents[1], capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*formats(), "manifest", "plain"], run.stderr
    for line in lines:
        assert (
            "WriteFailed" in line and "could not be written: File too large" in line and "run the same command" in line
        )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_digest_cache_that_cannot_be_written_says_so_and_caches_in_memory(tmp_path):
    pytest.importorskip("resource")
    program = """
import os, resource, sys
from pathlib import Path
from cache import digest_cache as module
module.RACY_CHANGE_SECONDS = 0.0  # the clip is written just now
clip = Path(sys.argv[1]) / "clip.wav"
clip.write_bytes(b"x")
os.utime(clip, (1, 1))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
digest_cache = module.DigestCache(Path(sys.argv[1]) / "memo.sqlite", say=print)
digest_cache.get(clip, "name")
digest_cache.put(clip, "name", "value")
print(digest_cache.get(clip, "name"))
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    run = subprocess.run(command, cwd=PROGRAM.parents[1], capture_output=True, text=True, timeout=60, check=True)
    said, recalled = run.stdout.splitlines()
    assert "cannot be used" in said and "in memory only" in said
    assert recalled == "value"


def test_several_processes_share_a_digest_cache(tmp_path):
    paths = [tmp_path / f"{number}.wav" for number in range(10)]
    for path in paths:
        path.write_bytes(b"x")
        os.utime(path, (1, 1))
    command = [
        sys.executable,
        "-W",
        "error",
        str(PROGRAM),
        "caching_digests",
        str(tmp_path / "memo.sqlite"),
        *map(str, paths),
    ]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0, 0]
