"""An artifact exists when its receipt does; one writer at a time per run identity."""

from __future__ import annotations

import errno
import json
import os

import pytest

from cache.errors import ArtifactDamaged, LockHeld, ReceiptDamaged, WriteFailed
from cache.receipt import Receipt
from cache.store import RECEIPT, Store, file_sizes

NAME, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "artifacts")


def receipt_of(name, stage="encode", **fields):
    return Receipt(stage=stage, fingerprint=name, identity=name, version=1, **fields)


def commit(store, name, stage="encode", content=b"rows", **fields):
    scratch = store.scratch(stage, name)
    (scratch / "deep").mkdir(parents=True)
    (scratch / "manifest.parquet").write_bytes(content)
    (scratch / "deep" / "part.bin").write_bytes(b"part")
    return store.commit(stage, name, scratch, receipt_of(name, stage, **fields))


def everything_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_reading_creates_nothing(store):
    assert store.find("encode", NAME) is None
    assert store.receipts() == []
    assert store.sizes().total == 0
    assert not store.root.exists()


def test_a_committed_artifact_is_found_with_its_files_listed(store):
    receipt = commit(store, NAME, facts={"num_clips": 3})
    assert [(entry.name, entry.num_bytes) for entry in receipt.files] == [("deep/part.bin", 4), ("manifest.parquet", 4)]
    assert store.find("encode", NAME) == receipt
    assert (store.directory("encode", NAME) / "manifest.parquet").read_bytes() == b"rows"
    assert not store.scratch("encode", NAME).exists()
    assert store.differences(receipt) == []


def test_an_artifact_that_does_not_exist_is_not_found(store):
    assert store.find("encode", NAME) is None


def test_a_folder_without_a_receipt_does_not_exist_and_is_replaced(store):
    home = store.directory("encode", NAME)
    home.mkdir(parents=True)
    (home / "left.bin").write_bytes(b"half of a deletion")
    assert store.find("encode", NAME) is None
    assert store.receipts() == []
    commit(store, NAME)
    assert not (home / "left.bin").exists()


def test_the_receipt_is_written_after_every_file_is_safe_and_before_the_rename(store, monkeypatch):
    seen = []
    monkeypatch.setattr("cache.store.fsync_file", lambda path: seen.append(path.name))
    monkeypatch.setattr("cache.store.atomic_write_bytes", lambda path, content: seen.append(path.name))
    monkeypatch.setattr(Store, "_move_into_place", lambda self, scratch, home: seen.append("rename"))
    commit(store, NAME)
    assert seen == ["part.bin", "manifest.parquet", RECEIPT, "rename"]


def test_a_commit_killed_before_its_rename_is_done_again_from_the_same_scratch(store, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "_move_into_place", lambda self, scratch, home: (_ for _ in ()).throw(KeyboardInterrupt))
        commit(store, NAME)
    scratch = store.scratch("encode", NAME)
    assert (scratch / RECEIPT).exists() and store.find("encode", NAME) is None

    (scratch / "manifest.parquet").write_bytes(b"more rows")
    receipt = store.commit("encode", NAME, scratch, receipt_of(NAME))
    assert [entry.name for entry in receipt.files] == ["deep/part.bin", "manifest.parquet"]
    assert store.differences(receipt) == []


def test_a_full_disk_commits_nothing_and_keeps_the_scratch(store, monkeypatch):
    def refuse(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(WriteFailed, match="No space left"):
        patch.setattr("cache.store.fsync_file", refuse)
        commit(store, NAME)
    assert store.find("encode", NAME) is None
    store.commit("encode", NAME, store.scratch("encode", NAME), receipt_of(NAME))
    assert store.find("encode", NAME) is not None


def test_an_existing_artifact_is_kept(store):
    first = commit(store, NAME, facts={"run": 1})
    assert commit(store, NAME, content=b"ROWS", facts={"run": 2}) == first
    assert store.find("encode", NAME) == first
    assert not store.scratch("encode", NAME).exists()


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("elsewhere"), lambda path: path.write_bytes(b"")])
def test_links_and_unfinished_files_cannot_be_committed(store, make):
    scratch = store.scratch("encode", NAME)
    scratch.mkdir(parents=True)
    make(scratch / "model.bin.tmp")
    with pytest.raises(ValueError, match=r"model\.bin\.tmp cannot be part of an artifact"):
        store.commit("encode", NAME, scratch, receipt_of(NAME))
    assert store.find("encode", NAME) is None


def test_a_receipt_of_something_else_cannot_commit(store):
    with pytest.raises(ValueError, match="cannot commit"):
        store.commit("encode", NAME, store.scratch("encode", NAME), receipt_of(OTHER))


def test_a_missing_or_truncated_file_is_noticed_by_find(store):
    commit(store, NAME)
    home = store.directory("encode", NAME)
    (home / "manifest.parquet").write_bytes(b"row")
    (home / "deep" / "part.bin").unlink()
    with pytest.raises(ArtifactDamaged) as caught:
        store.find("encode", NAME)
    assert caught.value.differences == ("deep/part.bin is missing", "manifest.parquet holds 3 bytes instead of 4")
    assert str(home) in str(caught.value)


def test_a_flipped_bit_or_an_extra_file_is_noticed_by_differences(store):
    receipt = commit(store, NAME)
    home = store.directory("encode", NAME)
    (home / "manifest.parquet").write_bytes(b"rowz")
    (home / "stranger").write_bytes(b"")
    assert store.find("encode", NAME) == receipt
    assert store.differences(receipt) == [
        "stranger is not listed in the receipt",
        "manifest.parquet has other bytes than when it was committed",
    ]


def test_swapped_artifacts_are_noticed(store):
    commit(store, NAME)
    store.directory("encode", NAME).rename(store.directory("encode", OTHER))
    with pytest.raises(ReceiptDamaged, match=f"it is that of encode {NAME}"):
        store.find("encode", OTHER)


def test_a_damaged_receipt_is_an_error_naming_it_unless_there_is_a_callback(store):
    kept = commit(store, NAME)
    commit(store, OTHER)
    damaged = store.directory("encode", OTHER) / RECEIPT
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(ReceiptDamaged, match=str(damaged)):
        store.find("encode", OTHER)
    with pytest.raises(ReceiptDamaged):
        store.receipts()
    heard = []
    assert store.receipts(on_damage=heard.append) == [kept]
    assert [error.file for error in heard] == [damaged]


def test_receipts_come_newest_first_and_by_stage(store):
    old = commit(store, NAME, finished="2026-01-01T00:00:00+00:00")
    new = commit(store, OTHER, finished="2026-01-02T00:00:00+00:00")
    ingest = commit(store, NAME, stage="ingest", finished="2026-01-01T12:00:00+00:00")
    assert store.receipts() == [new, ingest, old]
    assert store.receipts("encode") == [new, old]
    assert store.receipts("train") == []


def test_a_dropped_artifact_is_gone_receipt_first(store, monkeypatch):
    commit(store, NAME)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        store.drop("encode", NAME)
    assert store.find("encode", NAME) is None
    store.drop("encode", NAME)
    assert not store.directory("encode", NAME).exists()
    store.drop("encode", NAME)


@pytest.mark.parametrize("name", ["../" * 21 + "x", "a" * 63, "A" * 64, ""])
def test_nothing_that_is_not_a_fingerprint_becomes_a_path(store, name):
    for look in (store.directory, store.scratch, store.find):
        with pytest.raises(ValueError, match="64 hex digits"):
            look("encode", name)


@pytest.mark.parametrize("stage", ["../up", "shared", "scratch", "locks", "", "a/b"])
def test_nothing_that_is_not_a_stage_becomes_a_path(store, stage):
    with pytest.raises(ValueError, match="a stage's name is"):
        store.directory(stage, NAME)


def test_nothing_is_written_outside_the_root(store, tmp_path):
    with store.lock("encode", NAME):
        commit(store, NAME)
    store.drop("encode", NAME)
    assert list(tmp_path.iterdir()) == [store.root]


def test_sizes_are_given_per_artifact_pool_and_unfinished_run(store):
    commit(store, NAME)
    (store.shared / "latents").mkdir(parents=True)
    (store.shared / "latents" / "a.h5").write_bytes(b"12345")
    unfinished = store.scratch("train", OTHER)
    unfinished.mkdir(parents=True)
    (unfinished / "checkpoint").write_bytes(b"123")
    with store.lock("train", OTHER):
        sizes = store.sizes()
    receipt_bytes = (store.directory("encode", NAME) / RECEIPT).stat().st_size
    assert sizes.artifacts == {f"encode/{NAME[:32]}": 8 + receipt_bytes}
    assert sizes.shared == {"latents": 5}
    assert sizes.scratch == {f"train-{OTHER[:32]}": 3}
    assert sizes.total == 16 + receipt_bytes
    assert file_sizes(store.shared) == {"latents/a.h5": 5}


def test_a_second_lock_in_the_same_process_is_refused_too(store):
    with (
        store.lock("encode", NAME),
        pytest.raises(LockHeld, match=f"process {os.getpid()}"),
        store.lock("encode", NAME),
    ):
        pass
    with store.lock("encode", NAME):
        pass


def test_a_lock_is_released_by_an_error_and_names_no_holder_then(store):
    with pytest.raises(KeyboardInterrupt), store.lock("encode", NAME):
        (holder,) = (json.loads(path.read_text()) for path in (store.root / "locks").glob("*.json"))
        assert set(holder) == {"pid", "host", "since", "command"}
        raise KeyboardInterrupt
    assert not list((store.root / "locks").glob("*.json"))
    with store.lock("encode", NAME):
        pass


def test_a_lock_whose_holder_cannot_be_read_still_refuses(store):
    with store.lock("encode", NAME):
        next((store.root / "locks").glob("*.json")).write_text("{")
        with pytest.raises(LockHeld, match="another process"), store.lock("encode", NAME):
            pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_lock_is_held_without_a_name_on_a_full_disk_where_its_holder_may_be_about_to_free_some(
    store, monkeypatch, number
):
    def full(target, content):
        raise WriteFailed(target, "full", 0) from OSError(number, "full")

    monkeypatch.setattr("cache.store.atomic_write_bytes", full)
    with store.lock("upkeep", NAME), pytest.raises(LockHeld), store.lock("upkeep", NAME):
        pass
