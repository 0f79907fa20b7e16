"""Words never cost work: closed pipes and terminals, full disks and narrow encodings under stdout and stderr."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.streams import ForgivingFile, forgiving
from tests.small_datasets import clips, folder

ROOT = Path(__file__).parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="closes file descriptors as POSIX shells do")


class Refusing(io.RawIOBase):
    """A raw stream on which every write fails."""

    def __init__(self, number: int) -> None:
        self.number = number

    def writable(self) -> bool:
        return True

    refused = 0

    def write(self, content: object) -> int:
        self.refused += 1
        raise OSError(self.number, os.strerror(self.number))


def text_over(raw: io.RawIOBase, encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC, errno.ENXIO])
def test_what_cannot_be_written_is_dropped_without_an_error(number):
    raw = Refusing(number)
    print("words", file=forgiving(text_over(raw)), flush=True)
    assert raw.refused == 1


def test_an_unbuffered_stream_is_forgiving_too():
    raw = Refusing(errno.EIO)
    print("words", file=forgiving(io.TextIOWrapper(raw, encoding="utf-8", write_through=True)), flush=True)
    assert raw.refused >= 1


@pytest.mark.parametrize(("number", "remembered"), [(errno.ENOSPC, True), (errno.EPIPE, False), (errno.EIO, False)])
def test_a_loss_is_remembered_unless_the_reader_is_gone(number, remembered):
    raw = ForgivingFile(Refusing(number))
    raw.write(b"words")
    assert (raw.failure is not None) == remembered


def test_letters_that_a_stream_lacks_become_escapes(tmp_path):
    with (tmp_path / "said").open("wb", buffering=0) as raw:
        narrow = text_over(raw, "ascii")
        print("été", file=forgiving(narrow), flush=True)
    assert (tmp_path / "said").read_bytes().strip() == rb"\xe9t\xe9"


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, **options)  # type: ignore[call-overload]


def test_json_is_ascii_and_words_are_escaped_where_stdout_is_not_unicode(tmp_path):
    folder(tmp_path / "data", clips("été"))
    for flags in ([], ["--json"]):
        asked = ["explain", str(tmp_path / "data"), "--model", "tiny-base", "--store", str(tmp_path / "store"), *flags]
        result = command(*asked, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert result.returncode == 0, result.stderr
        assert "été" in str(json.loads(result.stdout)) if flags else rb"\xe9t\xe9" in result.stdout


@posix
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_no_error(closed, tmp_path):
    told = f"exec {sys.executable} -m pipeline status --store {tmp_path} {closed}"
    assert subprocess.run(["sh", "-c", told], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_document_that_found_no_space_is_an_error(tmp_path):
    with Path("/dev/full").open("wb") as full:
        result = command("status", "--json", "--store", str(tmp_path), stdout=full, stderr=subprocess.PIPE)
    assert (result.returncode, b"stdout could not be written (No space left" in result.stderr) == (1, True)
