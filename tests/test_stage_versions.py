"""A stage's version and its code go together."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.stage_code import CODE, RECORD, ROOT, WITHOUT_EFFECT, current, dumped, files, without_words


@pytest.mark.parametrize("name", CODE)
def test_changed_stage_code_comes_with_a_new_version_or_is_accepted_as_giving_the_same_results(name):
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))[name]
    now = current()[name]
    assert recorded == now, f"{name}: bump the stage's version, or run `make accept-stage-code` if results are the same"


def reached(start: Path) -> set[str]:
    """Modules of stages/ that a file imports, at any depth and anywhere in it."""
    seen, left = set(), [start]
    while left:
        path = left.pop()
        if path in seen or module_name(path) in WITHOUT_EFFECT:
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)] if imports_from(node) else []
            left += [place for name in names if (place := file_of(name)) is not None]
    return {module_name(path) for path in seen}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_from(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stages"


def file_of(name: str) -> Path | None:
    place = ROOT / Path(*name.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


@pytest.mark.parametrize("name", CODE)
def test_whatever_a_stage_imports_is_in_the_digest_of_its_code(name):
    digested = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files(name)
    }
    assert reached(ROOT / "stages" / name / "run.py") - digested - WITHOUT_EFFECT == set()


def test_words_do_not_count_as_code():
    spoken = 'def f(x):\n    """Says much."""\n    return param(x, ge=1, help="much")  # why\n'
    silent = "def f(x):\n    return param(x, ge=1)\n"
    other = "def f(x):\n    return param(x, ge=2)\n"
    trees = [dumped(without_words(ast.parse(text))) for text in (spoken, silent, other)]
    assert trees[0] == trees[1] != trees[2]
