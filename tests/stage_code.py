"""A digest of each stage's code, kept beside its version: changed code with an unchanged version is noticed.

`python -m tests.stage_code --accept` records the code as giving the same results.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path

from pipeline.plan.plan import stage_named

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).parent / "golden" / "stage_code.json"
MODELS = ("stages/models", "stages/model_config.py", "stages/precision.py", "stages/safetensors_header.py")
SHARED = ("stages/prepared_audio.py", "stages/records.py")
CODE = {
    "ingest": ("stages/ingest", "stages/text.py", *SHARED),
    "encode": ("stages/encode", *MODELS, *SHARED),
    "train": ("stages/train", *MODELS, "stages/adapters", "stages/text.py", *SHARED),
}
"""The code that decides each stage's result: files, and folders with everything below them."""
WITHOUT_EFFECT = {
    "stages", "stages.catalogue", "stages.contract", "stages.errors", "stages.field", "stages.references",
    "stages.disk_space", "stages.processes", "stages.plural", "stages.versions",
}  # fmt: skip
"""Modules that stages import but that do not decide results: interfaces, messages, distribution over processes."""


def without_words(tree: ast.AST) -> ast.AST:
    """The tree without docstrings and the help texts of fields; comments are not in it anyway."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [part for part in node.body if not _is_string(part)] or [ast.Pass()]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "param":
            node.keywords = [word for word in node.keywords if word.arg not in ("help", "rule", "section")]
    return tree


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def files(name: str) -> list[Path]:
    """Every source file that decides a stage's result, sorted."""
    places = [ROOT / place for place in CODE[name]]
    return sorted({path for place in places for path in (place.rglob("*.py") if place.is_dir() else [place])})


def digest(name: str) -> str:
    """Over the syntax trees of a stage's files, in name order."""
    total = hashlib.sha256()
    for path in files(name):
        tree = without_words(ast.parse(path.read_text(encoding="utf-8")))
        total.update(f"{path.relative_to(ROOT).as_posix()}\n{dumped(tree)}".encode())
    return total.hexdigest()


def dumped(node: object) -> str:
    """A syntax tree as text, the same on every Python: fields that hold nothing are left out (versions add such)."""
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return f"{type(node).__name__}({','.join(f'{name}={dumped(value)}' for name, value in fields)})"
    return f"[{','.join(map(dumped, node))}]" if isinstance(node, list) else repr(node)


def current() -> dict[str, dict[str, object]]:
    """Version and code digest of every stage as it stands."""
    return {name: {"version": stage_named(name).version, "code": digest(name)} for name in CODE}


def accept() -> None:
    """Record the code as it stands."""
    RECORD.write_text(json.dumps(current(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if "--accept" not in sys.argv:
        sys.exit("usage: python -m tests.stage_code --accept")
    accept()
