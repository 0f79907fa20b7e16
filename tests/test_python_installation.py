"""An installation that cannot work says what is wrong and what to do, in place of a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from sa3_trainer import installation
from sa3_trainer.installation import again, explanation

ROOT = Path(__file__).parents[1]
START = "import sys; sys.path[:0] = {first!r}; from sa3_trainer.command import main; main()"


def started(*words: str, first: tuple[Path, ...] = (), code: str = "") -> subprocess.CompletedProcess[str]:
    """The console script, with folders that are found before ours."""
    places = [*map(str, first), str(ROOT)]
    script = f"{code}\n{START.format(first=places)}\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(str, first)))}
    return subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, env=environment, cwd=ROOT.parent
    )


@pytest.mark.parametrize("name", ["pipeline", "stages", "cache"])
def test_a_folder_that_hides_ours_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("import colorama_of_somebody\n")
    done = started("--version", first=(tmp_path,))
    assert done.returncode == 1
    assert "hides one of sa3-trainer's" in done.stderr and f"{name} ({tmp_path / name})" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_hides_ours_is_named_in_json_too(tmp_path):
    (tmp_path / "stages.py").write_text("")
    done = started("status", "--json", first=(tmp_path,))
    document = json.loads(done.stdout)
    assert document["detail"][0]["type"] == "InstallationBroken" and str(tmp_path) in document["message"]


@pytest.mark.parametrize("name", ["torch", "pydantic", "typer"])
def test_a_missing_package_is_named_with_the_remedy(name):
    code = f"import sys; sys.modules[{name!r}] = None"
    words = {"typer": ("--version",), "pydantic": ("plan", "x.zip")}.get(name, ("bench", "--steps", "1"))
    done = started(*words, code=code)
    assert done.returncode == 1
    assert f"the package {name}, which sa3-trainer needs, is not installed: {again()}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_of_the_same_folders_is_named_with_the_way_out(monkeypatch):
    owners = {"pipeline": ["pipeline", "stable-audio-3-trainer"], "stages": ["stable_audio_3_trainer"]}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: owners)
    said = str(explanation(ModuleNotFoundError("No module named 'colorama'", name="colorama")))
    assert "the same folders as sa3-trainer and has replaced files of it: pipeline." in said
    assert "uv tool install" in said and "pip uninstall pipeline" in said


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("/home/a/.local/share/uv/tools/stable-audio-3-trainer", "uv tool upgrade --reinstall"),
        ("/home/a/.local/share/pipx/venvs/stable-audio-3-trainer", "pipx reinstall"),
    ],
)
def test_the_remedy_is_that_of_the_way_it_was_installed(monkeypatch, prefix, words):
    monkeypatch.setattr(sys, "prefix", prefix)
    assert words in again()


def test_the_remedy_of_a_plain_environment_names_its_python_and_where_it_came_from(monkeypatch, tmp_path):
    monkeypatch.setattr(installation, "ROOT", tmp_path)
    git = '{"url": "https://a.example/b.git", "vcs_info": {"vcs": "git"}}'
    monkeypatch.setattr(metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: git))
    wanted = f'{sys.executable} -m pip install --force-reinstall --no-deps "git+https://a.example/b.git"'
    assert wanted in again()
    assert f'{sys.executable} -m pip install --force-reinstall "torch>=2.7"' in again("torch>=2.7")


def test_files_that_another_package_took_along_are_named(tmp_path, monkeypatch):
    places = {"pipeline": None, "stages": installation.ROOT / "stages", "cache": installation.ROOT / "cache"}
    monkeypatch.setattr(installation, "_origin", places.get)
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    said = str(explanation(ImportError("lost")))
    assert said.startswith("files of sa3-trainer are missing (pipeline), as after the removal of another package")


def test_a_missing_package_is_an_event_too(tmp_path):
    (tmp_path / "clips").mkdir()
    words = ("ingest", str(tmp_path / "clips"), "--store", str(tmp_path / "s"), "--model", "tiny-base")
    done = started(*words, "--progress", "json", code="import sys; sys.modules['pyarrow'] = None")
    error, end = [json.loads(line) for line in done.stderr.splitlines()][-2:]
    assert (error["event"], error["type"], end["exit_code"]) == ("error", "InstallationBroken", 1)


def test_an_error_of_our_own_is_not_blamed_on_the_installation(monkeypatch):
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    assert explanation(ImportError("cannot import name 'x' from 'pipeline.cli'", name="pipeline.cli")) is None
    assert explanation(AttributeError("no attribute")) is None
    assert explanation(FileNotFoundError("a file")) is None


def test_the_command_works_from_its_own_package():
    done = started("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "sa3-trainer"), done.stderr
