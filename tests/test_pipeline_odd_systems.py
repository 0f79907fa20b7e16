"""What systems do to a store and its data: wrong clocks, edits that leave no trace, several commands at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from pipeline.cli import app
from tests.small_datasets import clips, folder

ROOT = Path(__file__).parents[1]
IN_2040 = 2_208_988_800


def ingest(place: Path, data: Path, *flags: str):
    words = ["ingest", str(data), "--workers", "1", "--store", str(place / "s"), *flags]
    return CliRunner().invoke(app, words)


def all_files(*folders: Path) -> list[Path]:
    return [path for one in folders for path in [one, *one.rglob("*")]]


def test_files_from_the_future_are_used_again_and_an_edit_of_one_is_seen(tmp_path):
    data = folder(tmp_path / "clips", clips("a", "b"))
    for path in all_files(data):
        os.utime(path, (IN_2040, IN_2040))
    assert "2 clips" in ingest(tmp_path, data).output
    for path in all_files(data, tmp_path / "s"):
        os.utime(path, (IN_2040, IN_2040))
    assert "nothing to do" in ingest(tmp_path, data).output
    for command in (["status"], ["verify"], ["gc"]):
        assert CliRunner().invoke(app, [*command, "--store", str(tmp_path / "s")]).exit_code == 0
    caption = data / "a.txt"
    caption.write_bytes(bytes(reversed(caption.read_bytes())))
    os.utime(caption, (IN_2040, IN_2040))
    assert "1 caption changed: a" in ingest(tmp_path, data).output


def with_title(file: Path, title: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    with soundfile.SoundFile(file, "w", 44100, 1) as written:
        written.title = title
        written.write(np.random.default_rng(0).uniform(-0.3, 0.3, 22_050))
    return file


@pytest.mark.parametrize("name", ["a.flac", "a.wav", "a.ogg"])
def test_a_tag_that_is_edited_in_place_with_kept_time_and_size_is_seen(tmp_path, name):
    file = with_title(tmp_path / "clips" / name, "title one")
    os.utime(file, (1_600_000_000, 1_600_000_000))
    before = file.stat()
    assert ingest(tmp_path, file.parent, "--caption-template", "{title}").exit_code == 0
    if name == "a.ogg":  # its pages have checksums: it is written again
        with_title(file, "title two")
    else:
        file.write_bytes(file.read_bytes().replace(b"title one", b"title two"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert "1 caption changed: a" in ingest(tmp_path, file.parent, "--caption-template", "{title}").output


@pytest.mark.parametrize("depth", ["", "deep/", "deep/er/"])
def test_a_store_and_an_output_inside_a_zip_are_said_and_never_read(tmp_path, depth):
    data = folder(tmp_path / "clips", clips("a"))
    ingest(tmp_path, data)
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for path in (tmp_path / "s").rglob("*"):
            archive.write(path, f"{depth}artifacts/{path.relative_to(tmp_path / 's')}")
        for path in data.iterdir():
            archive.write(path, f"{depth}{path.name}")
    done = CliRunner().invoke(app, ["ingest", str(tmp_path / "d.zip"), "--store", str(tmp_path / "other")])
    assert f"{depth}artifacts/: it is a store of sa3-trainer and is not read as data" in done.output
    assert "1 clip, " in done.output


def test_joblib_says_nothing_of_its_own_about_a_system_without_semaphores():
    code = (
        "import sys, warnings\n"
        "from pipeline import __main__\n"
        "__main__._run_command = lambda: [warnings.warn(words) for words in (\n"
        "    'No /dev/shm.  joblib will operate in serial mode', 'something else')]\n"
        "__main__.main()"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stderr
    assert "something else" in said and "serial mode" not in said


@pytest.mark.slow
def test_four_commands_at_once_on_a_new_store_all_succeed_and_leave_it_intact(tmp_path):
    data = folder(tmp_path / "clips", clips("a", "b"))
    (tmp_path / "s").mkdir()  # gc refuses a store that is not there yet
    ours = [sys.executable, "-m", "pipeline"]
    small = [str(data), "--model", "tiny-base", "--threads", "1", "--workers", "1"]
    train = ["--pre-encode", "--rank", "2", "--number-of-steps", "2", "--output", str(tmp_path / "o")]
    commands = [
        ["run", *small, *train],
        ["run", *small, *train, "--name", "again"],
        ["encode", *small],
        ["gc"],
    ]
    running = [subprocess.Popen([*ours, *one, "--store", str(tmp_path / "s")], cwd=ROOT) for one in commands]
    assert [one.wait(timeout=300) for one in running] == [0, 0, 0, 0]
    assert (tmp_path / "o" / "clips.safetensors").read_bytes() == (tmp_path / "o" / "again.safetensors").read_bytes()
    checked = subprocess.run([*ours, "verify", "--json", "--store", str(tmp_path / "s")], capture_output=True, cwd=ROOT)
    assert checked.returncode == 0 and json.loads(checked.stdout)["damages"] == []
