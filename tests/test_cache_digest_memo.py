"""A digest is remembered for exactly the state of the file it was taken from."""

from __future__ import annotations

import os
import pickle
import time

import pytest

from cache.digest_memo import RACY_SECONDS, DigestMemo
from cache.fingerprint import digest_file

LONG_AGO = 1_600_000_000


@pytest.fixture
def memo(tmp_path):
    return DigestMemo(tmp_path / "memo" / "memo.sqlite", say=pytest.fail)


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    write(path, b"first")
    return path


def write(path, content, when=LONG_AGO):
    path.write_bytes(content)
    os.utime(path, (when, when))


def remember(memo, path, value="value"):
    memo.recall(path, "name")
    memo.remember(path, "name", value)


def test_what_is_remembered_is_recalled_by_name_of_what(memo, clip):
    remember(memo, clip)
    assert memo.recall(clip, "name") == "value"
    assert memo.recall(clip, "another name") is None


def test_looking_creates_no_file(memo, clip, tmp_path):
    assert memo.recall(clip, "name") is None
    assert not (tmp_path / "memo").exists()


def test_another_process_recalls_it(memo, clip):
    remember(memo, clip)
    assert pickle.loads(pickle.dumps(memo)).recall(clip, "name") == "value"


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "d"
    (root / "deep").mkdir(parents=True)
    for name in ("a.wav", "deep/b.wav", "unseen.wav"):
        write(root / name, name.encode())
    write(tmp_path / "d.wav", b"beside, and almost of the same name")
    return root


def test_what_lies_below_a_folder_is_fetched_at_once_and_judged_as_ever(memo, folder, monkeypatch):
    for path in (folder / "a.wav", folder / "deep" / "b.wav", folder.with_suffix(".wav")):
        remember(memo, path, path.name)
    memo.foresee(folder, "name")
    asked: list[str] = []
    rows = memo._ledger.rows
    monkeypatch.setattr(memo._ledger, "rows", lambda query, values: asked.append(query) or rows(query, values))
    assert memo.recall(folder / "a.wav", "name") == "a.wav"
    assert memo.recall(folder / "deep" / "b.wav", "name") == "b.wav"
    assert memo.recall(folder / "unseen.wav", "name") is None
    write(folder / "a.wav", b"changed since it was fetched")
    assert memo.recall(folder / "a.wav", "name") is None
    assert not asked, "nothing below the folder was asked for again"
    assert memo.recall(folder.with_suffix(".wav"), "name") == "d.wav"
    assert memo.recall(folder / "a.wav", "another name") is None
    assert len(asked) == 2


def test_what_is_remembered_after_it_was_fetched_is_recalled_too(memo, folder):
    memo.foresee(folder, "name")
    remember(memo, folder / "unseen.wav", "seen now")
    assert memo.recall(folder / "unseen.wav", "name") == "seen now"
    assert pickle.loads(pickle.dumps(memo)).recall(folder / "unseen.wav", "name") == "seen now"


def test_another_size_is_another_file(memo, clip):
    remember(memo, clip)
    write(clip, b"longer than before")
    assert memo.recall(clip, "name") is None


def test_another_mtime_is_another_file(memo, clip):
    remember(memo, clip)
    write(clip, b"other", when=LONG_AGO + 1)
    assert memo.recall(clip, "name") is None


def test_another_inode_is_another_file(memo, clip):
    remember(memo, clip)
    other = clip.with_name("other.wav")
    write(other, b"other")  # the same size and mtime
    other.replace(clip)
    assert memo.recall(clip, "name") is None


def test_a_file_touched_within_two_seconds_is_not_remembered(memo, clip):
    write(clip, b"first", when=time.time() - RACY_SECONDS / 2)
    remember(memo, clip)
    assert memo.recall(clip, "name") is None


def test_a_file_changed_while_it_was_read_is_not_remembered(memo, clip):
    memo.recall(clip, "name")
    write(clip, b"other", when=LONG_AGO + 1)  # reading took long: the change is no longer young when it ends
    memo.remember(clip, "name", "digest of a mixture")
    assert memo.recall(clip, "name") is None


def test_a_file_young_when_it_was_read_is_not_remembered_however_long_reading_took(memo, clip, monkeypatch):
    write(clip, b"first", when=time.time())
    memo.recall(clip, "name")
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 60)
    memo.remember(clip, "name", "value")
    assert memo.recall(clip, "name") is None


def test_digest_reads_an_unchanged_file_once(memo, clip, monkeypatch):
    reads = []
    monkeypatch.setattr("cache.digest_memo.digest_file", lambda path: reads.append(path) or digest_file(path))
    assert memo.digest(clip) == memo.digest(clip) == digest_file(clip)
    assert reads == [clip]
    write(clip, b"other", when=LONG_AGO + 5)
    assert memo.digest(clip) == digest_file(clip)
    assert len(reads) == 2


def test_a_flipped_bit_inside_a_value_is_not_believed(memo, clip, tmp_path):
    remember(memo, clip, "sha256:0000")
    file = tmp_path / "memo" / "memo.sqlite"
    content = file.read_bytes()
    assert content.count(b"sha256:0000") == 1
    file.write_bytes(content.replace(b"sha256:0000", b"sha256:0001"))
    assert pickle.loads(pickle.dumps(memo)).recall(clip, "name") is None


def test_a_path_that_is_not_utf8_is_remembered(memo, tmp_path):
    odd = tmp_path / os.fsdecode(b"cl\xffp.wav")
    try:
        write(odd, b"first")
    except (OSError, UnicodeError):
        pytest.skip("this file system has UTF-8 names only")
    remember(memo, odd)
    assert memo.recall(odd, "name") == "value"
