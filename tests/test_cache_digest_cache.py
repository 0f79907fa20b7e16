"""A digest is cached for exactly the state of the file it was computed from."""

from __future__ import annotations

import os
import time

import pytest

from cache import digest_cache as digest_cache_module
from cache.digest_cache import RACY_CHANGE_SECONDS, RACY_SECONDS, DigestCache
from cache.fingerprint import digest_file

LONG_AGO = 1_600_000_000


@pytest.fixture(autouse=True)
def files_of_tests_are_old_enough(monkeypatch):
    """No program can set a ctime back, so files written by a test just now count as changed long ago."""
    monkeypatch.setattr(digest_cache_module, "RACY_CHANGE_SECONDS", 0.0)


@pytest.fixture
def digest_cache(tmp_path):
    return DigestCache(tmp_path / "cache" / "digests.sqlite", say=pytest.fail)


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    write(path, b"first")
    return path


def write(path, content, when=LONG_AGO):
    path.write_bytes(content)
    os.utime(path, (when, when))


def cache_value(digest_cache, path, value="value"):
    digest_cache.get(path, "name")
    digest_cache.put(path, "name", value)


def reopened(digest_cache):
    """The same file, as another process sees it."""
    return DigestCache(digest_cache._database.file, say=pytest.fail)


def test_a_cached_value_is_found_by_its_kind(digest_cache, clip):
    cache_value(digest_cache, clip)
    assert digest_cache.get(clip, "name") == "value"
    assert digest_cache.get(clip, "another name") is None


def test_looking_creates_no_file(digest_cache, clip, tmp_path):
    assert digest_cache.get(clip, "name") is None
    assert not (tmp_path / "cache").exists()


def test_another_process_finds_it(digest_cache, clip):
    cache_value(digest_cache, clip)
    assert reopened(digest_cache).get(clip, "name") == "value"


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "d"
    (root / "deep").mkdir(parents=True)
    for name in ("a.wav", "deep/b.wav", "unseen.wav"):
        write(root / name, name.encode())
    write(tmp_path / "d.wav", b"beside, and almost of the same name")
    return root


def test_prefetch_takes_one_query_and_changes_no_result(digest_cache, folder, monkeypatch):
    for path in (folder / "a.wav", folder / "deep" / "b.wav", folder.with_suffix(".wav")):
        cache_value(digest_cache, path, path.name)
    digest_cache.prefetch(folder, "name")
    asked: list[str] = []
    query_all = digest_cache._database.query
    monkeypatch.setattr(
        digest_cache._database, "query", lambda query, values: asked.append(query) or query_all(query, values)
    )
    assert digest_cache.get(folder / "a.wav", "name") == "a.wav"
    assert digest_cache.get(folder / "deep" / "b.wav", "name") == "b.wav"
    assert digest_cache.get(folder / "unseen.wav", "name") is None
    write(folder / "a.wav", b"changed since it was fetched")
    assert digest_cache.get(folder / "a.wav", "name") is None
    assert not asked, "nothing below the folder was asked for again"
    assert digest_cache.get(folder.with_suffix(".wav"), "name") == "d.wav"
    assert digest_cache.get(folder / "a.wav", "another name") is None
    assert len(asked) == 2


def test_a_value_cached_after_prefetch_is_found_too(digest_cache, folder):
    digest_cache.prefetch(folder, "name")
    cache_value(digest_cache, folder / "unseen.wav", "seen now")
    assert digest_cache.get(folder / "unseen.wav", "name") == "seen now"
    assert reopened(digest_cache).get(folder / "unseen.wav", "name") == "seen now"


def test_another_size_is_another_file(digest_cache, clip):
    cache_value(digest_cache, clip)
    write(clip, b"longer than before")
    assert digest_cache.get(clip, "name") is None


def test_another_mtime_is_another_file(digest_cache, clip):
    cache_value(digest_cache, clip)
    write(clip, b"other", when=LONG_AGO + 1)
    assert digest_cache.get(clip, "name") is None


def test_another_inode_is_another_file(digest_cache, clip):
    cache_value(digest_cache, clip)
    other = clip.with_name("other.wav")
    write(other, b"other")  # the same size and mtime
    other.replace(clip)
    assert digest_cache.get(clip, "name") is None


def test_an_edit_in_place_that_keeps_size_and_mtime_is_seen_by_its_ctime(digest_cache, clip):
    cache_value(digest_cache, clip)
    ctime_ns = clip.stat().st_ctime_ns
    while clip.stat().st_ctime_ns == ctime_ns:  # the kernel's clock ticks every few milliseconds
        write(clip, b"other")
    assert clip.stat().st_size == len(b"first") and clip.stat().st_mtime == LONG_AGO
    assert digest_cache.get(clip, "name") is None


def test_a_file_changed_an_instant_ago_is_not_cached_whatever_its_mtime_says(digest_cache, clip, monkeypatch):
    monkeypatch.setattr(digest_cache_module, "RACY_CHANGE_SECONDS", RACY_CHANGE_SECONDS)
    write(clip, b"other")
    cache_value(digest_cache, clip)
    assert digest_cache.get(clip, "name") is None


def test_a_file_touched_within_two_seconds_is_not_cached(digest_cache, clip):
    write(clip, b"first", when=time.time() - RACY_SECONDS / 2)
    cache_value(digest_cache, clip)
    assert digest_cache.get(clip, "name") is None


def test_a_file_changed_while_it_was_read_is_not_cached(digest_cache, clip):
    digest_cache.get(clip, "name")
    write(clip, b"other", when=LONG_AGO + 1)  # reading took long: the change is no longer young when it ends
    digest_cache.put(clip, "name", "digest of a mixture")
    assert digest_cache.get(clip, "name") is None


def test_a_file_young_when_it_was_read_is_not_cached_however_long_reading_took(digest_cache, clip, monkeypatch):
    write(clip, b"first", when=time.time())
    digest_cache.get(clip, "name")
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 60)
    digest_cache.put(clip, "name", "value")
    assert digest_cache.get(clip, "name") is None


def test_digest_reads_an_unchanged_file_once(digest_cache, clip, monkeypatch):
    reads = []
    monkeypatch.setattr("cache.digest_cache.digest_file", lambda path: reads.append(path) or digest_file(path))
    assert digest_cache.digest(clip) == digest_cache.digest(clip) == digest_file(clip)
    assert reads == [clip]
    write(clip, b"other", when=LONG_AGO + 5)
    assert digest_cache.digest(clip) == digest_file(clip)
    assert len(reads) == 2


def test_a_flipped_bit_inside_a_value_is_noticed(digest_cache, clip, tmp_path):
    cache_value(digest_cache, clip, "sha256:0000")
    file = tmp_path / "cache" / "digests.sqlite"
    content = file.read_bytes()
    assert content.count(b"sha256:0000") == 1
    file.write_bytes(content.replace(b"sha256:0000", b"sha256:0001"))
    assert reopened(digest_cache).get(clip, "name") is None


def test_a_path_that_is_not_utf8_is_cached(digest_cache, tmp_path):
    odd = tmp_path / os.fsdecode(b"cl\xffp.wav")
    try:
        write(odd, b"first")
    except (OSError, UnicodeError):
        pytest.skip("this file system has UTF-8 names only")
    cache_value(digest_cache, odd)
    assert digest_cache.get(odd, "name") == "value"


def test_a_read_only_cache_finds_values_and_stores_none(digest_cache, clip, tmp_path):
    file = tmp_path / "cache" / "digests.sqlite"
    cache_value(DigestCache(file, read_only=True), clip)
    assert not file.exists()
    cache_value(digest_cache, clip, "stored")
    cache_value(DigestCache(file, read_only=True), clip, "not stored")
    assert DigestCache(file, read_only=True).get(clip, "name") == "stored"
