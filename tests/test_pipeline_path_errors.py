"""Errors of the system about paths and memory become one line: which path, why, what to do."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from cache.errors import WriteFailed
from cache.files import atomic_files
from pipeline.cli import app
from pipeline.cli_errors import reported_errors
from pipeline.errors import MemoryUsedUp, PathFailed
from pipeline.execution import runner
from pipeline.path_errors import memory_errors, path_errors, why_not_writable
from tests.small_datasets import clips, folder


def said(number: int, path: Path | None, **folders: Path) -> str:
    """The message for an error of the system; folders by option, such as `store`."""
    named = (number, os.strerror(number), str(path)) if path else (number, os.strerror(number))
    with pytest.raises(PathFailed) as caught, path_errors({f"--{name}": place for name, place in folders.items()}):
        raise OSError(*named)
    return str(caught.value)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free some space there"),
        (errno.EDQUOT, "Free some space there"),
        (errno.EROFS, "mount it for writing"),
        (errno.EACCES, "another user"),
        (errno.EPERM, "another user"),
        (errno.ENOENT, "removed or unmounted"),
        (errno.ESTALE, "removed or unmounted"),
        (errno.EIO, "Check that place and its disk"),
    ],
)
def test_an_error_in_the_store_names_the_path_why_and_what_to_do(tmp_path, number, remedy):
    message = said(number, tmp_path / "st" / "locks" / "x.lock", store=tmp_path / "st")
    assert message.startswith(f"{tmp_path}/st/locks/x.lock: {os.strerror(number)}")
    assert remedy in message and "with --store" in message


def test_an_error_in_the_output_folder_advises_another_output_folder(tmp_path):
    assert "with --output" in said(
        errno.EROFS, tmp_path / "st" / "out", store=tmp_path / "st", output=tmp_path / "st/out"
    )


def test_an_error_without_a_path_is_taken_to_concern_the_first_folder(tmp_path):
    assert said(errno.ENOSPC, None, store=tmp_path).startswith(f"{tmp_path}: No space left")


def test_an_error_elsewhere_still_names_its_path(tmp_path):
    assert said(errno.EACCES, tmp_path / "elsewhere", store=tmp_path / "st").startswith(f"{tmp_path}/elsewhere: ")


def test_a_file_missing_outside_the_request_is_a_bug_and_keeps_its_traceback(tmp_path):
    with pytest.raises(FileNotFoundError), path_errors({"--store": tmp_path / "st"}):
        (tmp_path / "elsewhere").read_bytes()


def test_a_full_output_folder_does_not_advise_another_store(tmp_path):
    folders = {"--store": tmp_path / "st", "--output": tmp_path / "out"}
    with pytest.raises(WriteFailed, match="choose another with --output"), path_errors(folders):
        raise WriteFailed(tmp_path / "out" / "x.safetensors", "No space left on device", 0)


@pytest.mark.parametrize(("inodes", "free", "said"), [(6, 1 << 28, True), (6, 1 << 20, False), (9999, 1 << 28, False)])
def test_a_disk_with_few_inodes_and_much_room_was_out_of_inodes(tmp_path, monkeypatch, inodes, free, said):
    usage = os.statvfs(tmp_path)
    few = os.statvfs_result([*usage[:5], 10_000, inodes, inodes, *usage[8:]])
    monkeypatch.setattr(os, "statvfs", lambda path: few)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    why, _ = atomic_files.failure_reason(tmp_path / "new", OSError(errno.ENOSPC, "No space left on device"))
    assert ("inode" in why) == said


def test_no_inodes_left_is_said_instead_of_the_free_bytes(tmp_path, monkeypatch):
    usage = os.statvfs(tmp_path)
    none_left = os.statvfs_result([*usage[:5], 100, 0, 0, *usage[8:]])
    monkeypatch.setattr(os, "statvfs", lambda path: none_left)
    why, free = atomic_files.failure_reason(tmp_path / "new", OSError(errno.ENOSPC, "No space left on device"))
    assert ("inode" in why, free) == (True, None)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_every_form_of_no_memory_gives_words(error):
    with pytest.raises(MemoryUsedUp, match="ulimit -v"), memory_errors():
        raise error


def test_another_error_is_not_taken_for_one_of_memory():
    with pytest.raises(RuntimeError, match="a bug"), memory_errors():
        raise RuntimeError("a bug")


def test_the_command_line_prints_one_line_and_exits_with_1(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended, reported_errors():
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "x"))
    assert (ended.value.code, capsys.readouterr().err.count("\n")) == (1, 1)


def test_another_users_store_whose_folders_cannot_even_be_listed_gives_one_line(tmp_path, monkeypatch):
    def denied(path: Path, **more: object) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", denied)
    assert "another user" in said(errno.EACCES, tmp_path / "st" / "digests.sqlite", store=tmp_path / "st")


@pytest.fixture
def data(tmp_path) -> Path:
    return folder(tmp_path / "data", clips("one"))


def ingest(tmp_path: Path, data: Path):
    return CliRunner().invoke(app, ["ingest", str(data), "--store", str(tmp_path / "st"), "--model", "tiny-base"])


def refuse_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "why_not_writable", lambda folder: "Read-only file system")


def test_a_read_only_store_is_enough_where_every_result_is_there(tmp_path, data, monkeypatch):
    assert ingest(tmp_path, data).exit_code == 0
    refuse_writing(monkeypatch)
    done = ingest(tmp_path, data)
    assert (done.exit_code, "nothing to do" in done.stderr) == (0, True)


def test_a_read_only_store_is_refused_before_anything_runs_where_a_result_is_missing(tmp_path, data, monkeypatch):
    refuse_writing(monkeypatch)
    refused = ingest(tmp_path, data)
    assert "--store" in refused.stderr and "cannot be written (Read-only" in refused.stderr
    assert not (tmp_path / "st" / "scratch").exists()


def test_ingest_needs_no_weights(tmp_path, data, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    call = ["ingest", str(data), "--store", str(tmp_path / "st"), "--model", "medium-base", "--weights", str(tmp_path)]
    assert CliRunner().invoke(app, call).exit_code == 0


@pytest.mark.parametrize("name", ["x" * 250, "taken"])
def test_a_name_that_cannot_be_written_is_refused_before_anything_runs(tmp_path, data, name):
    (tmp_path / "out" / "taken.json").mkdir(parents=True)
    call = ["run", str(data), "--store", str(tmp_path / "st"), "--output", str(tmp_path / "out"), "--name", name]
    refused = CliRunner().invoke(app, [*call, "--model", "tiny-base"])
    assert (refused.exit_code, "name: " in refused.stderr) == (2, True)
    assert not (tmp_path / "st").exists()


def test_an_export_folder_that_cannot_be_made_is_refused_before_anything_runs(tmp_path, data):
    (tmp_path / "file").write_bytes(b"")
    call = ["encode", str(data), "--store", str(tmp_path / "st"), "--export", str(tmp_path / "file" / "ex")]
    refused = CliRunner().invoke(app, [*call, "--model", "tiny-base"])
    assert (refused.exit_code, "--export" in refused.stderr, (tmp_path / "st").exists()) == (1, True, False)


class PanicException(BaseException):
    """As libraries written in Rust raise it."""


@pytest.mark.parametrize("error", [SystemError("error return without exception set"), PanicException("null")])
def test_a_failure_inside_the_interpreter_is_one_of_memory_only_where_memory_is_limited(monkeypatch, error):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 30, 1 << 30))
    with pytest.raises(MemoryUsedUp, match=str(error)), memory_errors():
        raise error
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    with pytest.raises(type(error)), memory_errors():
        raise error


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("\n")])
def test_an_error_of_memory_without_words_is_named_by_its_kind(error):
    with pytest.raises(MemoryUsedUp, match="MemoryError"), memory_errors():
        raise error


@pytest.mark.parametrize("command", [["status"], ["verify"], ["gc"], ["evict", "--stage", "train"], ["doctor"]])
def test_a_store_that_may_not_be_read_is_refused_in_our_words_and_not_by_the_parser(tmp_path, monkeypatch, command):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setattr(Path, "iterdir", refused)
    done = CliRunner().invoke(app, [*command, "--store", str(tmp_path)])
    assert done.exit_code != 2 and "Invalid value" not in done.output


def refused(folder):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def test_verify_does_not_pass_over_a_folder_of_prepared_clips_that_it_may_not_read(tmp_path, monkeypatch):
    folder = tmp_path / "shared" / "prepared" / "ab"
    folder.mkdir(parents=True)
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: refused(self) if self == folder else listed(self))
    done = CliRunner().invoke(app, ["verify", "--store", str(tmp_path)])
    assert done.exit_code == 1 and f"{folder}: Permission denied" in done.output


def test_trying_a_folder_makes_nothing_that_a_killed_process_would_leave(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: made.append(self))
    monkeypatch.setattr(Path, "unlink", lambda self, **options: None)
    assert why_not_writable(tmp_path) is None and made == []
    monkeypatch.delattr(os, "O_TMPFILE")  # a disk that has no files without a name
    assert why_not_writable(tmp_path) is None
    assert made[0].name.endswith(".tmp") and f"-{os.getpid()}-" in made[0].name, "a name that gc knows as a leftover"


def test_two_commands_that_try_one_folder_at_once_are_not_in_each_others_way(tmp_path, monkeypatch):
    tried, unlink = [], Path.unlink

    def unlinked_by_both(self, **options):
        if not tried:
            tried.append(self)
            assert why_not_writable(tmp_path) is None
        unlink(self, **options)

    monkeypatch.setattr(Path, "unlink", unlinked_by_both)
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    assert why_not_writable(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
