"""The house's arrows, light rooms and yardsticks, read off the source."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pipeline", "stages", "cache")
MAY_IMPORT = {"pipeline": set(ROOMS), "stages": {"stages", "cache"}, "cache": {"cache"}}
STAGES = {"ingest", "encode", "train"}
HEAVY = {
    "torch", "numpy", "pyarrow", "h5py", "resampy", "soundfile", "transformers", "huggingface_hub", "safetensors",
    "scipy", "joblib", "pydantic", "filelock",
}  # fmt: skip
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "process", "data", "info"}
FILES = sorted(path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported(path: Path, *, top_only: bool) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


def is_light(path: Path) -> bool:
    parts = path.parts
    if parts[0] == "pipeline" or path.name in {
        "__init__.py",
        "stage.py",
        "source.py",
        "contract.py",
        "records.py",
        "errors.py",
    }:
        return True
    if (
        parts[:2] == ("stages", "models")
        and len(parts) == 3
        and (not path.name.startswith("_") or path.name == "_folder.py")
    ):
        return True
    if path.name in {"catalogue.py", "_patterns.py"}:
        return True
    return (
        parts[0] == "cache"
        and path.name not in {"manifest.py", "shard_pool.py", "shard_format.py"}
        and "shards" not in parts
    )


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_follow_the_arrows(path):
    rooms = {name.split(".")[0] for name in imported(path, top_only=False)} & set(ROOMS)
    assert rooms <= MAY_IMPORT[path.parts[0]]


@pytest.mark.parametrize("path", [path for path in FILES if len(path.parts) > 2 and path.parts[1] in STAGES], ids=str)
def test_a_stage_never_imports_another(path):
    others = {f"stages.{name}" for name in STAGES - {path.parts[1]}}
    reached = {".".join(name.split(".")[:2]) for name in imported(path, top_only=False)}
    assert not reached & others


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[:2] == ("stages", "adapters")], ids=str)
def test_adapters_never_import_models(path):
    assert not {name for name in imported(path, top_only=False) if name.startswith("stages.models")}


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[:2] == ("stages", "models")], ids=str)
def test_models_never_import_what_runs_stages(path):
    run_code = {name for name in imported(path, top_only=False) if name.split(".")[:2][-1] in STAGES}
    assert not run_code


@pytest.mark.parametrize("path", [path for path in FILES if is_light(path)], ids=str)
def test_a_light_module_imports_nothing_heavy_at_top_level(path):
    assert not {name.split(".")[0] for name in imported(path, top_only=True)} & HEAVY


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_module_is_a_small_room_with_a_telling_name(path):
    assert (ROOT / path).read_text(encoding="utf-8").count("\n") <= 400
    assert path.stem not in VAGUE


def test_functions_are_short():
    lengths = sorted(
        (node.end_lineno or node.lineno) - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    assert statistics.median(lengths) < 12
    assert lengths[int(len(lengths) * 0.9)] < 35


@pytest.mark.parametrize(
    "command", [["--help"], ["run", "--help"], ["status", "--store", "no-such-store"]], ids=" ".join
)
def test_help_and_status_load_neither_torch_nor_numpy_nor_pyarrow(command, tmp_path):
    code = (
        "import sys, atexit\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'h5py', 'numba', 'transformers', 'joblib'}\n"
        "atexit.register(lambda: print('LOADED', sorted(heavy & set(sys.modules)), flush=True))\n"
        f"sys.argv = ['sa3-trainer', *{command!r}]\n"
        "from pipeline.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout
