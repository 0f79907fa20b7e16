"""The wheel holds everything that the product needs: installed elsewhere, it generates with the weights that ship."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import soundfile

from stages import catalogue
from stages.models.bundled_weights import digest_lines

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = [name.removesuffix("*") for name in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
PARTS = (*PACKAGES, "pyproject.toml", "README.md", "LICENSE")
LARGEST_BYTES = 24_000_000


def call(*words: str | Path, cwd: Path) -> str:
    """Run a command that must succeed, in a folder without the project; its stdout."""
    usual = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=usual)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the sources, which a build leaves files in."""
    source = tmp_path_factory.mktemp("source")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    code = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
    call(sys.executable, "-c", code, cwd=source)
    (made,) = (source / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory) -> Path:
    """`sa3-trainer` in an environment of its own, which borrows this one's packages but not its project."""
    place = tmp_path_factory.mktemp("installed")
    call(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    python = place / "venv" / "bin" / "python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=place)
    (packages,) = (place / "venv").glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")] or site.getsitepackages()
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    return place / "venv" / "bin" / "sa3-trainer"


def test_it_holds_the_weights_that_ship_byte_for_byte(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    for family in catalogue.bundled_families():
        folder = family.FOLDER.relative_to(ROOT)
        assert digest_lines(tmp_path / folder) == digest_lines(family.FOLDER)


def test_it_is_small(wheel):
    assert wheel.stat().st_size < LARGEST_BYTES


def test_its_command_generates_with_the_weights_that_ship(command, tmp_path):
    words = ["generate", "a kick drum", "--model", "tiny", "--steps", "2", "--seconds", "1", "--seed", "1", "--json"]
    facts = json.loads(call(command, *words, cwd=tmp_path))
    assert soundfile.info(tmp_path / facts["file"]).duration == 1.0


def test_its_command_is_the_installed_one(command, tmp_path):
    python = command.with_name("python")
    place = call(python, "-c", "import stages; print(stages.__path__[0])", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(command.parents[1])
