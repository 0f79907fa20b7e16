"""Audio decoded by worker processes: the same batches, nothing decoded twice, no process left running."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import catalogue
from stages.contract import Resources, Workspace
from stages.errors import PreparedAudioMissing, Stopped
from stages.models.load_weights import load_autoencoder
from stages.processes import init_worker
from stages.train.dataset import audio_prefetch, sample_ranges
from stages.train.dataset.audio_prefetch import AudioPrefetcher, num_processes
from stages.train.dataset.clips import LiveLatents, StoredLatents
from stages.train.dataset.examples import Examples
from stages.train.dataset.prompt_embeddings import PromptEmbeddings
from stages.train.dataset.sample_ranges import SampleRange, read_ranges
from tests.small_training import Bench, encoded, ingested, params, random_audio, random_hidden, random_latents, weights

ROOT = Path(__file__).parents[1]
LENGTHS = (30_000, 70_000, 20_000, 55_000)
WINDOW = 40_000


@cache
def autoencoder():
    return load_autoencoder(weights())


def live_examples(root, lengths=LENGTHS, window=WINDOW, **changes):
    """Two clips are longer than the window."""
    artifact = ingested(root / "shared", root / "ingested", random_audio(lengths), window)
    clips = LiveLatents(artifact, root / "shared", catalogue.models()["tiny-base"], autoencoder())
    prompts = PromptEmbeddings({f"prompt {number}": torch.zeros(2, 4) for number in range(len(lengths))})
    wanted = params(**{"pre_encode": False, "batch_size": 2, **changes})
    return Examples(clips=clips, prompts=prompts, params=wanted, shift_options=None)


def workspace(root, workers):
    said = []
    work = Workspace(directory=root, shared=root / "shared", resources=Resources(workers=workers), say=said.append)
    return work, said


def tensors(batch):
    return {name: getattr(batch, name) for name in ("latents_BCT", "noise_BCT", "timestep_B", "real_BT", "given_BT")}


def assert_same(batch, other):
    assert (batch.clip_ids, batch.crop_starts, batch.microbatch_sizes) == (
        other.clip_ids,
        other.crop_starts,
        other.microbatch_sizes,
    )
    for name, tensor in tensors(batch).items():
        assert torch.equal(tensor, tensors(other)[name])


class Pool:
    """A pool that reads at once, in this process, and records the requests."""

    def __init__(self, *_, **__):
        self.requests = []

    def submit(self, function, ranges):
        self.requests.append(ranges)
        done = Future()
        done.set_result(function(ranges))
        return done

    def shutdown(self, **_):
        pass


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(audio_prefetch, "ProcessPoolExecutor", Pool)


def gone(pids, seconds=8.0):
    """Whether all of the processes end within so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(is_running(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_processes_that_decode_ahead_change_no_batch(tmp_path, monkeypatch):
    changes = {"batch_size": 1, "frames_per_batch": 40, "gradient_accumulation": 2}
    expected = [live_examples(tmp_path / "alone", **changes).batch(step) for step in range(6)]
    examples = live_examples(tmp_path / "ahead", **changes)
    reads = []
    monkeypatch.setattr(sample_ranges, "read_prepared", lambda *a: reads.append(a))
    work, said = workspace(tmp_path, workers=2)
    with AudioPrefetcher(examples, range(6), work) as prefetcher:
        for step in range(6):
            assert_same(prefetcher.batch(step), expected[step])
    assert (reads, said) == ([], [])


def test_worker_processes_are_fresh_and_import_little(tmp_path):
    work, _ = workspace(tmp_path, workers=1)
    with AudioPrefetcher(live_examples(tmp_path), range(2), work) as prefetcher:
        assert prefetcher._pool.submit(read_ranges, []).result() == []
        loaded = prefetcher._pool.submit(
            eval, "sorted({'torch', 'stages.train.dataset.audio_prefetch'} & set(__import__('sys').modules))"
        )
        assert loaded.result() == []


def test_sample_ranges_can_be_read_in_a_spawned_process(tmp_path):
    clips = live_examples(tmp_path).clips
    samples = pickle.loads(pickle.dumps(clips.sample_range(1, 5)))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=init_worker, initargs=(os.getpid(),)) as pool:
        audio, missing = pool.submit(read_ranges, [samples, SampleRange(tmp_path / "none.flac", 0, 9)]).result()
    np.testing.assert_array_equal(audio, samples.read())
    assert missing is None


def test_audio_whose_latents_are_cached_is_decoded_once_for_each_sign(tmp_path, here):
    examples = live_examples(tmp_path, lengths=(30_000, 20_000), window=30_000)
    work, _ = workspace(tmp_path, workers=1)
    with AudioPrefetcher(examples, range(40), work) as prefetcher:
        for step in range(40):
            prefetcher.batch(step)
        asked = [samples.path.name for ranges in prefetcher._pool.requests for samples in ranges]
    assert sorted(asked) == ["0.flac"] * 2 + ["1.flac"] * 2


def test_audio_whose_latents_are_cached_already_is_not_decoded(tmp_path, here):
    examples = live_examples(tmp_path, lengths=(30_000,), polarity_flip=False)
    examples.clips.read(0, 0, False)
    work, _ = workspace(tmp_path, workers=1)
    with AudioPrefetcher(examples, range(5), work) as prefetcher:
        prefetcher.batch(0)
        assert prefetcher._pool.requests == []


def test_audio_is_decoded_in_the_order_of_the_steps_a_few_at_a_time(tmp_path, here, monkeypatch):
    examples = live_examples(tmp_path, lengths=(70_000,), batch_size=1)
    work, _ = workspace(tmp_path, workers=2)
    with AudioPrefetcher(examples, range(3, 30), work) as prefetcher:
        prefetcher.batch(3)
        few = len(prefetcher._pool.requests)
        assert 2 <= few <= 6
        monkeypatch.setattr(audio_prefetch, "PREFETCH_BYTES", 0)
        for step in range(4, 30):
            prefetcher.batch(step)
        starts = [samples.start for ranges in prefetcher._pool.requests for samples in ranges]
    assert starts == [examples.excerpts(step).starts[0] for step in range(3, 30)]


def test_memory_bounds_how_much_is_decoded_ahead(tmp_path, here, monkeypatch):
    monkeypatch.setattr(audio_prefetch, "PREFETCH_BYTES", 2 * WINDOW * 8)
    examples = live_examples(tmp_path, lengths=(70_000,), batch_size=1)
    work, _ = workspace(tmp_path, workers=4)
    with AudioPrefetcher(examples, range(30), work) as prefetcher:
        prefetcher.batch(0)
        assert len(prefetcher._pool.requests) == 2


def test_the_batch_of_any_step_can_be_made(tmp_path, here):
    examples, alone = live_examples(tmp_path / "one"), live_examples(tmp_path / "two")
    work, _ = workspace(tmp_path, workers=1)
    with AudioPrefetcher(examples, range(20), work) as prefetcher:
        for step in (0, 1, 7, 2, 8, 19, 25):
            assert_same(prefetcher.batch(step), alone.batch(step))


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_audio_is_the_same_error_with_processes_and_without(tmp_path, workers):
    examples = live_examples(tmp_path, lengths=(70_000, 80_000))
    path = tmp_path / "shared" / "prepared" / "1.flac"
    path.unlink()
    work, _ = workspace(tmp_path, workers)
    with (
        AudioPrefetcher(examples, range(4), work) as prefetcher,
        pytest.raises(PreparedAudioMissing, match="is gone") as caught,
    ):
        prefetcher.batch(0)
    assert caught.value.path == path


def test_a_killed_process_is_reported_and_training_continues_without(tmp_path):
    examples, alone = live_examples(tmp_path / "one"), live_examples(tmp_path / "two")
    work, said = workspace(tmp_path, workers=1)
    with AudioPrefetcher(examples, range(20), work) as prefetcher:
        assert_same(prefetcher.batch(0), alone.batch(0))
        pid = prefetcher._pool.submit(os.getpid).result()
        os.kill(pid, signal.SIGKILL)
        assert gone([pid])
        for step in range(1, 12):
            assert_same(prefetcher.batch(step), alone.batch(step))
    assert len(said) == 1 and "a process that decodes audio ahead was killed" in said[0]


def test_processes_end_with_the_block(tmp_path):
    work, _ = workspace(tmp_path, workers=2)
    with AudioPrefetcher(live_examples(tmp_path), range(20), work) as prefetcher:
        pids = {prefetcher._pool.submit(os.getpid).result() for _ in range(4)}
        prefetcher.batch(0)
    assert gone(pids)


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs in the background ignore it
sys.path.insert(0, {root!r})
from tests.test_train_audio_prefetch import live_examples, workspace
from stages.train.dataset.audio_prefetch import AudioPrefetcher
place = Path({place!r})
with AudioPrefetcher(live_examples(place, lengths=(70_000,)), range(10_000), workspace(place, 2)[0]) as prefetcher:
    prefetcher.batch(0)
    print(*[process.pid for process in prefetcher._pool._processes.values()], flush=True)
    time.sleep(60)
"""
"""A script without `if __name__ == "__main__"`, as users write them."""


@pytest.mark.parametrize(
    ("kill", "code"), [(signal.SIGKILL, -9), pytest.param(signal.SIGINT, -2, marks=pytest.mark.slow)]
)
def test_processes_end_with_a_training_that_is_killed_or_interrupted(tmp_path, kill, code):
    file = tmp_path / "script.py"
    file.write_text(SCRIPT.format(root=str(ROOT), place=str(tmp_path)))
    script = subprocess.Popen(
        [sys.executable, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=ROOT,
    )
    assert script.stdout is not None
    pids = [int(pid) for pid in script.stdout.readline().split()]
    assert pids and all(is_running(pid) for pid in pids)
    if kill is signal.SIGINT:
        os.killpg(script.pid, kill)  # as a terminal does
    else:
        os.kill(script.pid, kill)
    _, errors = script.communicate(timeout=20)
    assert script.returncode == code
    assert gone(pids)
    assert errors.count("Traceback") == (kill is signal.SIGINT)


def test_nothing_is_decoded_ahead_for_stored_latents_or_by_default_for_little_audio(tmp_path, monkeypatch):
    from cache.shard_pool import ShardPool

    monkeypatch.setattr(audio_prefetch.joblib, "cpu_count", lambda: 6)
    little = live_examples(tmp_path)
    assert [num_processes(little, range(10), asked) for asked in (0, 3)] == [0, 3]
    monkeypatch.setattr(audio_prefetch, "MIN_SECONDS_TO_PREFETCH", 1.0)
    assert num_processes(little, range(100), 0) == 3
    monkeypatch.setattr(audio_prefetch.joblib, "cpu_count", lambda: 1)
    assert num_processes(little, range(100), 0) == 0

    artifact = encoded(tmp_path / "shared", tmp_path / "encoded", random_latents((9,)), random_hidden(1))
    stored = StoredLatents(artifact, ShardPool(tmp_path / "shared" / "latents"), catalogue.models()["tiny-base"])
    examples = Examples(clips=stored, prompts=PromptEmbeddings({}), params=params(), shift_options=None)
    assert num_processes(examples, range(100), 3) == 0


def test_a_training_from_audio_is_the_same_with_processes_and_without(tmp_path):
    options = {"number_of_steps": 5, "batch_size": 2, "crops_per_clip": 2}
    alone = Bench.of_audio(tmp_path, LENGTHS, WINDOW)
    ahead = alone.at("ahead", resources=replace(alone.resources, workers=2))
    alone.train(**options)
    with pytest.raises(Stopped):
        ahead.train(stop_after=2, **options)
    ahead.train(**options)
    assert ahead.results() == alone.results()
