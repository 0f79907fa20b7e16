"""Modules of cache/ that say so in their docstring need the standard library only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("numpy", "pyarrow", "h5py", "torch", "filelock")
ROOT = Path(__file__).parents[1]
LIGHT = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "cache").rglob("*.py")
    if "Light:" in (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "")
)


def loaded_after(code):
    program = f"import sys\n{code}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()


def test_light_modules_load_nothing_heavy():
    assert "cache.store" in LIGHT
    assert loaded_after("import " + ", ".join(LIGHT)) == []


def test_listing_the_formats_loads_none_of_them():
    assert loaded_after("import cache.shards; assert cache.shards.formats() == ['hdf5', 'parquet']") == []


@pytest.mark.parametrize(("format", "others"), [("parquet", "h5py"), ("hdf5", "pyarrow")])
def test_a_pool_loads_its_own_format_only(format, others):
    loaded = loaded_after(
        f"from pathlib import Path; import cache.shard_pool; cache.shard_pool.ShardPool(Path('none'), {format!r})"
    )
    assert "numpy" in loaded and others not in loaded
