"""A file gets its name when it is complete, and temporary files of dead writers are removed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time

import pytest

from cache.errors import WriteFailed
from cache.files import atomic_files
from cache.files.atomic_files import STALE_AFTER_SECONDS, atomic_write, atomic_write_bytes, remove_stale_temporaries


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def temporary_of(folder, pid, machine=None):
    path = folder / f"a.bin.{machine or atomic_files._machine()}-{pid}-{'0' * 16}.tmp"
    path.write_bytes(b"half")
    return path


@pytest.fixture
def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_final_name_appears_only_when_all_is_written(tmp_path):
    with atomic_write(tmp_path / "new" / "a.bin") as file:
        file.write(b"half")
        assert not (tmp_path / "new" / "a.bin").exists()
        file.write(b"whole")
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"halfwhole"
    assert names(tmp_path / "new") == ["a.bin"]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    atomic_write_bytes(tmp_path / "a.bin", b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a.bin") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_an_existing_file_is_kept_even_when_it_appeared_while_ours_was_written(tmp_path):
    with atomic_write(tmp_path / "a.bin", keep_existing=True) as file:
        file.write(b"second")
        (tmp_path / "a.bin").write_bytes(b"first")
    assert (tmp_path / "a.bin").read_bytes() == b"first"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("there", [True, False])
def test_a_disk_without_hard_links_keeps_the_same_promise(tmp_path, monkeypatch, there):
    def refuse(source, target):
        raise OSError(errno.ENOTSUP, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    if there:
        (tmp_path / "a.bin").write_bytes(b"first")
    with atomic_write(tmp_path / "a.bin", keep_existing=True) as file:
        file.write(b"second")
    assert (tmp_path / "a.bin").read_bytes() == (b"first" if there else b"second")
    assert names(tmp_path) == ["a.bin"]


def test_a_write_that_fails_says_which_file_why_and_how_much_space_is_left(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(WriteFailed, match=r"a\.bin could not be written: No space left on device \([\d,]+ MB are free"):
        atomic_write_bytes(tmp_path / "a.bin", b"x")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_gives_the_same_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteFailed, match="could not be written"):
        atomic_write_bytes(tmp_path / "file" / "a.bin", b"x")


def test_the_next_writer_removes_what_a_dead_one_left(tmp_path, dead_pid):
    temporary_of(tmp_path, dead_pid)
    atomic_write_bytes(tmp_path / "other.bin", b"x")
    assert names(tmp_path) == ["other.bin"]


def test_an_earlier_process_with_our_pid_is_dead(tmp_path):
    assert remove_stale_temporaries(tmp_path) == []
    left = temporary_of(tmp_path, os.getpid())
    assert remove_stale_temporaries(tmp_path) == [left]


def test_the_temporary_file_of_a_live_writer_is_kept(tmp_path):
    theirs = temporary_of(tmp_path, os.getppid())
    with atomic_write(tmp_path / "b.bin") as file:
        file.write(b"x")
        assert remove_stale_temporaries(tmp_path) == []
    assert names(tmp_path) == [theirs.name, "b.bin"]


def test_a_pid_of_another_machine_says_nothing_so_age_decides(tmp_path, dead_pid):
    young, old = temporary_of(tmp_path, dead_pid, "aaaaaaaa"), temporary_of(tmp_path, dead_pid, "bbbbbbbb")
    then = time.time() - STALE_AFTER_SECONDS - 60
    os.utime(old, (then, then))
    assert remove_stale_temporaries(tmp_path) == [old]
    assert young.exists()


def test_files_of_other_programs_are_not_removed(tmp_path):
    for name in ("song.tmp", "a.bin.1234.tmp"):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (1, 1))
    assert remove_stale_temporaries(tmp_path) == []


def test_a_temporary_file_removed_while_it_is_written_is_an_error_and_no_file(tmp_path):
    with pytest.raises(WriteFailed), atomic_write(tmp_path / "a.bin") as file:
        file.write(b"x")
        next(tmp_path.glob("*.tmp")).unlink()
    assert names(tmp_path) == []
