"""Programs that write, for tests that kill them: `python writers_to_kill.py WHAT ...`.

Each prints `ready` once its imports are done, so that a kill falls into its work.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

IDENTITY = "c" * 64


def artifacts(root: str) -> None:
    """Commits one artifact after the other while holding the same lock."""
    from cache.receipt import Receipt
    from cache.store import Store

    store = Store(Path(root))
    number = len(store.receipts())
    ready()
    with store.lock("train", IDENTITY):
        while True:
            number += 1
            name = f"{number:032x}" * 2
            scratch = store.scratch("train", IDENTITY)
            shutil.rmtree(scratch, ignore_errors=True)
            (scratch / "deep").mkdir(parents=True)
            (scratch / "steps.txt").write_text("step\n" * number)
            (scratch / "deep" / "weights.bin").write_bytes(bytes(range(256)) * 40)
            store.commit("train", name, scratch, Receipt(stage="train", fingerprint=name, identity=IDENTITY, version=1))


def manifests(file: str) -> None:
    """Writes two manifests in turn under one name."""
    from cache.manifest import write_rows
    from stages.records import PromptRow

    ready()
    while True:
        for count in (50, 60):
            rows = [
                PromptRow(prompt_key=str(n), prompt="rain " * 20, shard="s", row=n, num_tokens=count, checksum="0")
                for n in range(count)
            ]
            write_rows(Path(file), rows, PromptRow)


def shards(folder: str, format: str, num_items: str, first: str = "0", per_shard: str = "3") -> None:
    """Writes small shards of the items `first` to `num_items`, in order, skipping what is there, as encoding does."""
    from cache.shard_pool import ShardPool

    pool = ShardPool(Path(folder), format)
    ready()
    wanted = [key_of(number) for number in range(int(first), int(num_items))]
    there = pool.locate(wanted)
    missing = [key for key in wanted if key not in there]
    for start in range(0, len(missing), int(per_shard)):
        pool.write([(key, values_of(key)) for key in missing[start : start + int(per_shard)]], {"made": "to be killed"})


def caching_digests(file: str, *paths: str) -> None:
    """Stores every path in a digest cache, many times, and reads what others stored."""
    from cache import digest_cache as module

    module.RACY_CHANGE_SECONDS = 0.0  # the files were written just now
    digest_cache = module.DigestCache(Path(file))
    ready()
    for _ in range(20):
        for path in paths:
            known = digest_cache.get(Path(path), "name")
            if known not in (None, f"value of {path}"):
                raise SystemExit(f"{path} is cached as {known}")
            digest_cache.put(Path(path), "name", f"value of {path}")


def holding(root: str) -> None:
    """Holds a lock until killed."""
    import time

    from cache.store import Store

    with Store(Path(root)).lock("train", IDENTITY):
        ready()
        time.sleep(600)


def key_of(number: int) -> str:
    """The key of an item."""
    return f"{number:064x}"


def values_of(key: str):  # type: ignore[no-untyped-def]  # numpy is imported only by those who need it
    """The values of an item, determined by its key."""
    import numpy as np

    number = int(key, 16)
    return np.random.default_rng(number).standard_normal((number % 7 * 20, 16)).astype("float16")


def ready() -> None:
    """Tells the test that the work begins."""
    print("ready", flush=True)


if __name__ == "__main__":
    programs: list[Callable[..., None]] = [artifacts, manifests, shards, caching_digests, holding]
    {program.__name__: program for program in programs}[sys.argv[1]](*sys.argv[2:])
