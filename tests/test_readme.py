"""The README describes what is."""

from __future__ import annotations

import re
from pathlib import Path

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


def test_every_link_points_at_a_file():
    for link in re.findall(r"\]\(([A-Za-z./]+)\)", README):
        assert (ROOT / link).is_file(), link
