"""The number of workers, and missing joblib backends."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import joblib
import pytest

from stages.contract import Member, Resources
from stages.errors import EngineUnavailable, StageError
from stages.ingest import prepare_clip, workers
from stages.ingest.prepare_clip import RecordingJob
from stages.ingest.workers import num_workers
from tests.small_datasets import PARAMS, clips, folder, run, workspace


def jobs(count: int, num_bytes: int) -> list[RecordingJob]:
    members = [Member(name=f"{number}.wav", num_bytes=num_bytes, digest="sha256:00") for number in range(count)]
    return [
        RecordingJob(source=Path("d"), kind="zip", member=member, shared=Path("s"), params=PARAMS) for member in members
    ]


@pytest.mark.parametrize(
    ("asked", "count", "num_bytes", "expected"),
    [(3, 10, 1, 3), (3, 2, 1, 2), (0, 10, 1000, 1), (0, 100, 10**8, 4), (0, 3, 10**9, 3), (0, 0, 0, 1), (5, 0, 0, 1)],
)
def test_the_number_of_workers_is_as_requested_or_follows_the_work(monkeypatch, asked, count, num_bytes, expected):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 4)
    assert num_workers(jobs(count, num_bytes), Resources(workers=asked)) == expected


@pytest.mark.parametrize(("engine", "package"), [("dask", r"dask\[distributed\]"), ("ray", "ray")])
def test_a_missing_backend_is_an_error_that_says_what_to_install(tmp_path, monkeypatch, engine, package):
    import sys

    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    data = folder(tmp_path / "d", clips("a", "b"))
    with pytest.raises(EngineUnavailable, match=f"pip install '{package}'"):
        run(data, workspace(tmp_path, Resources(engine=engine)))


def test_a_write_error_is_reported_from_a_worker(tmp_path):
    data = folder(tmp_path / "d", clips("a", "b", "c"))
    work = workspace(tmp_path, Resources(workers=2))
    (work.shared).mkdir()
    (work.shared / "prepared").write_text("a file where a folder should be")
    with pytest.raises(StageError, match="could not be written"):
        run(data, work)


def test_a_failed_write_leaves_no_facts_behind(tmp_path, monkeypatch):
    def full(path: Path, content: bytes, **more: object) -> None:
        raise prepare_clip.CacheError("the disk is full")

    monkeypatch.setattr(prepare_clip, "atomic_write_bytes", full)
    with pytest.raises(StageError, match="the disk is full"):
        run(folder(tmp_path / "d", clips("a")), workspace(tmp_path))
    assert not list((tmp_path / "shared").rglob("*.*"))


def test_without_semaphores_clips_are_prepared_in_threads(tmp_path, monkeypatch):
    def refused() -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(multiprocessing, "Semaphore", refused)
    monkeypatch.setattr(workers, "get_reusable_executor", None)  # what would need them
    _, rows = run(folder(tmp_path / "d", clips("a", "b", "c")), workspace(tmp_path, Resources(workers=2)))
    assert [row.clip_id for row in rows] == ["a", "b", "c"]
