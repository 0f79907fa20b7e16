"""Time and peak memory of plan, status, locate and reads on a store of very many clips, each in a fresh process.

    python tests/benchmarks/bench_scale.py [clips, 100000 by default] [format]

The store is synthetic, to be built quickly: items of one frame and eight channels (so 256 to a shard, as
many shards as real clips of up to 250 KB would make), one prompt per hundred clips, and no prepared audio on disk.
Manifests, receipts, lists of shared files, shards and the registry are as a run writes them.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cache.fingerprint import fingerprint
from cache.receipt import Receipt
from cache.shared_files import write_shared_files
from cache.store import Store
from pipeline.plan.plan import plan
from pipeline.request.recipe import Recipe, read_recipe
from pipeline.request.resolve import ResolvedInputs
from stages.contract import Member, Source, Weights
from stages.encode.stage import item_key
from stages.ingest.stage import audio_params, prepared_path
from stages.records import Clip, EncodedClip, PromptRow

CHANNELS = 8
CLIPS_PER_PROMPT = 100
NUM_LOOKUPS = 2000
DIGESTS = {"autoencoder": "a" * 64, "transformer": "b" * 64, "conditioner": "c" * 64, "text_encoder": "d" * 64}
MEASURES: dict[str, Callable[[Path, str, int], Any]] = {}


def recipe(store: Path, format: str) -> Recipe:
    """The recipe of every measurement."""
    flags = {"model": "tiny-base", "pre_encode": True, "store": str(store), "latent_format": format}
    return read_recipe("clips.zip", {**flags, "max_clips": 10**7})


def found(members: int = 0, first: int = 0, dataset: str = "million") -> ResolvedInputs:
    """A dataset of so many clips, and weights."""
    listed = tuple(
        Member(name=f"{number:07d}.wav", num_bytes=1, digest=digest_of(number))
        for number in range(first, first + members)
    )
    source = Source(path=Path("clips.zip"), kind="zip", fingerprint=fingerprint(dataset, {}), members=listed)
    return ResolvedInputs(source=source, weights=Weights(model="tiny-base", folder=Path(), config={}, digests=DIGESTS))


def digest_of(number: int) -> str:
    """The source digest of a clip."""
    return f"sha256:{fingerprint('clip', {'number': number})}"


def build(root: Path, format: str, num_clips: int) -> None:
    """Builds the store of one ingest and one encode of so many clips."""
    from cache.manifest import write_rows
    from cache.shard_pool import ShardPool

    request, store = recipe(root, format), Store(root)
    ingest, encode, _ = plan(request, store, found()).runs
    audio = audio_params(ingest.params)
    digests = [digest_of(number) for number in range(num_clips)]
    keys = [item_key(digest, 0, audio, encode.params, DIGESTS["autoencoder"]) for digest in digests]
    paths = [prepared_path(digest, ingest.params, 0) for digest in digests]

    scratch = new_scratch(store, ingest)
    write_rows(scratch / "manifest.parquet", clips(digests, paths), Clip)
    write_shared_files(scratch, dict.fromkeys(paths, 10**6))
    commit(store, ingest, scratch, {"audio_params": audio, "num_clips": num_clips, **_TIMES})

    scratch = new_scratch(store, encode)
    locations = write_items(ShardPool(store.shared / "latents", format), keys)
    prompts = [f"{number:064x}" for number in range(num_clips // CLIPS_PER_PROMPT + 1)]
    lines = write_items(ShardPool(store.shared / "prompts", format), prompts)
    write_rows(scratch / "manifest.parquet", encoded_clips(locations, prompts), EncodedClip)
    write_rows(scratch / "prompts.parquet", prompt_rows(lines), PromptRow)
    shards = {f"latents/{location.shard}" for location in locations} | {
        f"prompts/{location.shard}" for location in lines
    }
    write_shared_files(scratch, {path: (store.shared / path).stat().st_size for path in shards})
    commit(store, encode, scratch, {"num_clips": num_clips, "latent_format": format, **_COUNTS, **_TIMES})


_TIMES = {"duration_seconds": 1.0, "window_frames": 11, "total_seconds": 1.0}
_COUNTS = {"num_encoded": 0, "num_reused": 0, "num_prompts": 0, "num_prompts_encoded": 0}


def new_scratch(store: Store, run: Any) -> Path:
    """A run's scratch folder."""
    scratch = store.scratch(run.stage.name, run.identity)
    scratch.mkdir(parents=True)
    return scratch


def commit(store: Store, run: Any, scratch: Path, facts: dict[str, Any]) -> None:
    """Commits a run as the runner does."""
    receipt = Receipt(
        stage=run.stage.name,
        fingerprint=run.fingerprint,
        identity=run.identity,
        version=run.stage.version,
        params=run.record["params"],
        inputs=dict(run.inputs),
        components=dict(run.components),
        facts=facts,
        finished="2026-01-01T00:00:00+00:00",
    )
    store.commit(run.stage.name, run.fingerprint, scratch, receipt)


def clips(digests: list[str], paths: list[str]) -> Iterator[Clip]:
    """Rows of the manifest of ingest."""
    for number, (digest, path) in enumerate(zip(digests, paths, strict=True)):
        yield Clip(
            clip_id=f"{number:07d}",
            audio=path,
            digest=digest,
            num_samples=44100,
            source_sample_rate_hz=44100,
            num_channels=2,
            crop_start=0,
            num_samples_cut=0,
            num_samples_padded=0,
            seconds_total=1,
            prompt=f"tone number {number // CLIPS_PER_PROMPT}",
            caption_source=f"{number:07d}.txt",
        )


def encoded_clips(locations: list[Any], prompts: list[str]) -> Iterator[EncodedClip]:
    """Rows of the manifest of encode."""
    for number, location in enumerate(locations):
        yield EncodedClip(
            clip_id=f"{number:07d}",
            item_key=location.item_key,
            prompt_key=prompts[number // CLIPS_PER_PROMPT],
            shard=location.shard,
            row=location.row,
            num_frames=1,
            num_valid_frames=1,
            seconds_start=0,
            seconds_total=1,
            prompt=f"tone number {number // CLIPS_PER_PROMPT}",
            checksum=location.checksum,
        )


def prompt_rows(locations: list[Any]) -> Iterator[PromptRow]:
    """Rows of the list of prompts."""
    for location in locations:
        yield PromptRow(
            prompt_key=location.item_key,
            prompt="tone",
            shard=location.shard,
            row=location.row,
            num_tokens=location.num_frames,
            checksum=location.checksum,
        )


def write_items(pool: Any, keys: list[str]) -> list[Any]:
    """Writes items of one frame to shards; returns their locations, in order."""
    import numpy as np

    from cache.shard_pool import shard_ranges

    locations: list[Any] = []
    for group in shard_ranges([2 * CHANNELS] * len(keys)):
        items = [
            (key, np.full((1, CHANNELS), int(key[:4], 16) % 99, np.float16)) for key in keys[group.start : group.stop]
        ]
        locations += pool.write(items, {"made": "for a benchmark"})
    return locations


def measure(function: Callable[[Path, str, int], Any]) -> Callable[[Path, str, int], Any]:
    """Adds a measurement to the table."""
    MEASURES[function.__name__] = function
    return function


@measure
def plan_of_all(root: Path, format: str, num_clips: int) -> Any:
    """plan, everything a hit"""
    return [run.state.value for run in plan(recipe(root, format), Store(root), found(), "encode").runs]


@measure
def plan_of_2000(root: Path, format: str, num_clips: int) -> Any:
    """plan of 2,000 other clips, half of them in the store"""
    data = found(NUM_LOOKUPS, num_clips - NUM_LOOKUPS // 2, "others")
    return plan(recipe(root, format), Store(root), data, "encode").runs[1].reason


@measure
def status(root: Path, format: str, num_clips: int) -> Any:
    """status --json"""
    from pipeline.maintenance.status import status_json

    return len(json.dumps(status_json(Store(root))))


@measure
def locate_2000(root: Path, format: str, num_clips: int) -> Any:
    """locate of 2,000 keys"""
    from cache.shard_pool import ShardPool

    return len(ShardPool(root / "shared" / "latents", format).locate(some_keys(root, format, num_clips, NUM_LOOKUPS)))


@measure
def random_read(root: Path, format: str, num_clips: int) -> Any:
    """locate and read one item"""
    from cache.shard_pool import ShardPool

    pool = ShardPool(root / "shared" / "latents", format)
    (location,) = pool.locate(some_keys(root, format, num_clips, 1)).values()
    return pool.read(location).shape


@measure
def all_rows(root: Path, format: str, num_clips: int) -> Any:
    """read_rows of the manifest (one object per clip)"""
    from cache.manifest import read_rows

    (manifest,) = (root / "encode").glob("*/manifest.parquet")
    return len(read_rows(manifest, EncodedClip))


@measure
def all_columns(root: Path, format: str, num_clips: int) -> Any:
    """read_columns of the manifest (as train holds it)"""
    from cache.manifest import read_columns

    (manifest,) = (root / "encode").glob("*/manifest.parquet")
    rows = read_columns(manifest, EncodedClip)
    return len(rows), rows[len(rows) // 2].clip_id


@measure
def gc_dry_run(root: Path, format: str, num_clips: int) -> Any:
    """gc --dry-run"""
    from pipeline.maintenance.gc import gc

    return gc(Store(root), print, dry_run=True)[0].num_bytes


def some_keys(root: Path, format: str, num_clips: int, count: int) -> list[str]:
    """Keys of clips spread over the store."""
    request = recipe(root, format)
    audio, params = audio_params(request.ingest_params()), request.encode_params()
    numbers = random.Random(0).sample(range(num_clips), min(count, num_clips))
    return [item_key(digest_of(number), 0, audio, params, DIGESTS["autoencoder"]) for number in numbers]


def one(name: str, root: Path, format: str, num_clips: int) -> None:
    """Runs one measurement in this process, after the imports."""
    import cache.manifest
    import cache.shard_pool

    assert cache.manifest and cache.shard_pool
    before, start = peak_mib(), time.perf_counter()
    said = MEASURES[name](root, format, num_clips)
    seconds, peak = time.perf_counter() - start, peak_mib()
    print(f"{MEASURES[name].__doc__:<56} {seconds:9.3f} s  {peak:7.0f} MiB (+{peak - before:.0f})  {said}", flush=True)


def peak_mib() -> float:
    """Peak memory of this process. (ru_maxrss would count the parent's, kept through fork and exec.)"""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 2**10


def main() -> None:
    """Builds the store, then runs each measurement in its own process."""
    if len(sys.argv) == 5:
        one(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
        return
    num_clips = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    format = sys.argv[2] if len(sys.argv) > 2 else "parquet"
    with tempfile.TemporaryDirectory() as folder:
        root, start = Path(folder) / "artifacts", time.perf_counter()
        build(root, format, num_clips)
        shards = len(list((root / "shared" / "latents").glob("*.*"))) - 1
        print(f"{num_clips:,} clips in {shards:,} {format} shards, built in {time.perf_counter() - start:.0f} s")
        for name in MEASURES:
            subprocess.run([sys.executable, __file__, name, str(root), format, str(num_clips)], check=True)


if __name__ == "__main__":
    main()
