"""The light part of the archive needs the standard library only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("numpy", "pyarrow", "h5py", "torch", "filelock")
LIGHT = ("aside", "errors", "fingerprint", "footer", "ledger", "memo", "receipt", "registry", "store", "shards")


def loaded_after(code):
    program = f"import sys\n{code}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split()


def test_light_modules_load_nothing_heavy():
    assert loaded_after("import " + ", ".join(f"cache.{name}" for name in LIGHT)) == []


def test_listing_the_formats_loads_none_of_them():
    assert loaded_after("import cache.shards; assert cache.shards.formats() == ['hdf5', 'parquet']") == []


@pytest.mark.parametrize(("format", "others"), [("parquet", "h5py"), ("hdf5", "pyarrow")])
def test_a_shelf_loads_its_own_format_only(format, others):
    loaded = loaded_after(
        f"from pathlib import Path; import cache.shard_pool; cache.shard_pool.ShardPool(Path('none'), {format!r})"
    )
    assert "numpy" in loaded and others not in loaded
