"""The README describes what is."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from pipeline.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def table(first_column: str) -> dict[str, list[str]]:
    """Rows of the table whose first heading this is, by their first cell without its marks."""
    lines = README.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[cells[0].strip("`").split(" ")[0]] = cells
    return rows


def test_the_table_of_commands_lists_every_command():
    assert set(table("command")) == {command.name or command.callback.__name__ for command in app.registered_commands}


def targets() -> set[str]:
    """Makefile targets that `make help` describes."""
    return set(re.findall(r"^([a-z-]+):.*## \S", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def test_every_make_target_named_in_the_readme_exists():
    calls = re.findall(r"(?:^|`|\$ )make ((?:[a-z-]+ ?)+)", README, flags=re.MULTILINE)
    named = {word for words in calls for word in words.split()}
    assert {"run", "test", "encode", "train", "help", "setup"} <= named
    assert named <= targets()


def test_every_make_target_is_described():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(phony[1].split()) == targets()


def test_every_link_of_the_readme_and_the_docs_points_at_a_file():
    pages = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([\w./-]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 10
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).is_file()] == []


def command_lines() -> list[list[str]]:
    """The words of every call of `sa3-trainer` in the README, comments left out."""
    calls = re.findall(r"^(?:\$ )?sa3-trainer (.*)$", README, flags=re.MULTILINE)
    return [shlex.split(call, comments=True) for call in calls]


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_every_command_line_in_the_readme_is_one_that_can_be_typed(words):
    command = typer.main.get_command(app).commands[words[0]]
    known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_run_gives_the_command_line_that_the_readme_shows():
    done = subprocess.run(["make", "-n", "run"], cwd=ROOT, capture_output=True, text=True, check=True)
    (shown,) = (line for line in README.splitlines() if line.startswith('sa3-trainer run "artifacts/example.zip"'))
    (made,) = (line for line in done.stdout.splitlines() if line.startswith(".venv/bin/sa3-trainer run"))
    unnamed = made.replace('--name ""', "")
    assert shlex.split(unnamed)[1:] == shlex.split(shown)[1:]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("variables", "heard"),
    [
        ([], True),
        (["RANK=8", "NAME=my style", "FLAGS=--output elsewhere"], True),
        (["DATA=clips.zip"], False),
        (["MODEL=medium-base"], False),
        (["FLAGS=--weights elsewhere"], False),
    ],
    ids=str,
)
def test_make_run_ends_with_the_adapter_heard_where_its_style_is_known(variables, heard):
    done = subprocess.run(["make", "-n", "run", *variables], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ("sa3-trainer generate " in done.stdout) == heard


def test_the_readme_is_short():
    assert len(README.encode()) < 8_000
