"""What `make setup` installs and shows, and what the packages on offer hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline.execution.next_steps import command_words

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def made(*words: str) -> str:
    """What make would do in an empty checkout."""
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", *words, "VENV=no-such-folder"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@needs_make
def test_setup_shows_what_it_does_and_leaves_out_the_tools_of_development():
    lines = made("setup")
    assert "pip install" in lines and "--quiet" not in lines
    assert "[dev]" not in lines and "docs/install.md" in lines


@needs_make
@pytest.mark.parametrize("target", ["check", "test", "bench", "parity"])
def test_the_tools_of_development_come_with_what_uses_them(target):
    assert '-e ".[dev]"' in made(target)


@needs_make
def test_a_python_that_is_too_old_is_named_before_anything_is_made(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    words = ["make", "setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "Python 3.11 or newer is needed" in done.stdout
    assert not (tmp_path / "venv").exists()


@needs_make
def test_make_run_ends_with_commands_that_can_be_typed():
    last = made("run").splitlines()[-2:]
    assert all("no-such-folder/bin/sa3-trainer" in line for line in last)


def test_the_wheel_holds_every_package_and_the_command_of_its_own_name():
    packages = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert packages == ["sa3_trainer*", "pipeline*", "stages*", "cache*"]
    assert PROJECT["project"]["scripts"] == {"sa3-trainer": "sa3_trainer.command:main"}


def test_every_extra_of_the_install_page_exists():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    named = page.partition("the extras ")[2].partition(", as in")[0].replace("`", "").replace("\n", " ").split(",")
    assert {name.strip() for name in named} == set(PROJECT["project"]["optional-dependencies"]) - {"dev", "conformance"}


@pytest.fixture
def script(tmp_path, monkeypatch) -> Path:
    """A console script in a folder that is not on the PATH, started from beside it."""
    file = tmp_path / ".venv" / "bin" / "sa3-trainer"
    file.parent.mkdir(parents=True)
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(file)])
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path)
    return file


def test_the_next_command_is_printed_as_this_one_was_typed(script):
    assert command_words() == [os.path.join(".venv", "bin", "sa3-trainer")]  # noqa: PTH118


def test_a_command_on_the_path_is_printed_by_its_name(script, monkeypatch):
    monkeypatch.setenv("PATH", str(script.parent))
    assert command_words() == ["sa3-trainer"]


def test_a_command_elsewhere_is_printed_with_its_whole_path(script, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert command_words() == [str(script)]


def test_a_module_is_printed_as_a_module(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "sa3_trainer" / "__main__.py")])
    assert command_words() == ["python", "-m", "sa3_trainer"]
