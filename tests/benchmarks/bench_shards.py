"""Speed and size of every latent format, compared with pairs of .npy and .json files.

    python tests/benchmarks/bench_shards.py [clips]

Absolute figures depend on the machine; compare the ratios.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cache.shard_pool import ShardPool, shard_ranges
from cache.shards import formats
from cache.store import iter_file_sizes

CROP_FRAMES = 100
CHANNELS = 256
COLUMNS = ("write MB/s", "clip p50 us", "clip p99 us", "crop p50 us", "crop p99 us", "MB on disk", "files")
Clips = list[tuple[str, np.ndarray]]


def clips_of(num_clips: int) -> Clips:
    """Random latents of 54 to 1292 frames."""
    random = np.random.default_rng(0)
    lengths = random.integers(54, 1292, num_clips)
    return [
        (f"{number:064x}", random.standard_normal((n, CHANNELS)).astype("float16")) for number, n in enumerate(lengths)
    ]


def read_us(read: Callable[[int], object], rows: list[int], rounds: int = 5) -> tuple[float, float]:
    """Median and 99th percentile microseconds of one read, rows in a fixed random order."""
    order = np.random.default_rng(1).permutation(rows).tolist()
    times = []
    for _ in range(rounds):
        for row in order:
            before = time.perf_counter()
            read(row)
            times.append((time.perf_counter() - before) * 1e6)
    return statistics.median(times), float(np.percentile(times, 99))


def figures(
    folder: Path, seconds: float, clips: Clips, reads: tuple[Callable, Callable], long: list[int]
) -> list[float]:
    """One line of the table, without its name."""
    clip, crop = read_us(reads[0], list(range(len(clips)))), read_us(reads[1], long)
    sizes = [size for name, size in iter_file_sizes(folder) if not name.startswith("registry")]
    return [total_bytes(clips) / seconds / 1e6, *clip, *crop, sum(sizes) / 1e6, len(sizes)]


def npy_figures(folder: Path, clips: Clips, long: list[int]) -> list[float]:
    """One .npy and one .json file per clip, each fsynced, as the reference's tool writes them."""
    folder.mkdir()
    before = time.perf_counter()
    for key, values in clips:
        with (folder / f"{key}.npy").open("wb") as file:
            np.save(file, values)
            fsync(file)
        with (folder / f"{key}.json").open("w") as file:
            json.dump({"prompt": "a tone", "seconds_total": 1, "padding_mask": [1] * len(values)}, file)
            fsync(file)
    seconds = time.perf_counter() - before
    paths = [folder / f"{key}.npy" for key, _ in clips]

    def crop(row: int) -> object:
        return np.array(np.load(paths[row], mmap_mode="r")[50 : 50 + CROP_FRAMES])

    return figures(folder, seconds, clips, (lambda row: np.load(paths[row]), crop), long)


def fsync(file: object) -> None:
    """Makes the content of a file durable, as shards are."""
    file.flush()  # type: ignore[attr-defined]
    os.fsync(file.fileno())  # type: ignore[attr-defined]


def format_figures(folder: Path, name: str, clips: Clips, long: list[int]) -> list[float]:
    """One format, through a ShardPool, which compares the checksum when it first reads a whole clip."""
    pool, locations = ShardPool(folder, name), []
    before = time.perf_counter()
    for group in shard_ranges([values.nbytes for _, values in clips]):
        locations += pool.write(clips[group.start : group.stop], {"purpose": "benchmark"})
    seconds = time.perf_counter() - before

    def crop(row: int) -> object:
        return pool.read(locations[row], 50, 50 + CROP_FRAMES)

    return figures(folder, seconds, clips, (lambda row: pool.read(locations[row]), crop), long)


def total_bytes(clips: Clips) -> int:
    """Bytes of all latents."""
    return sum(values.nbytes for _, values in clips)


def main() -> None:
    """Prints the table."""
    clips = clips_of(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
    long = [row for row, (_, values) in enumerate(clips) if len(values) >= 50 + CROP_FRAMES]
    with tempfile.TemporaryDirectory() as folder:
        rows = {".npy + .json": npy_figures(Path(folder) / "npy", clips, long)}
        for name in formats():
            rows[name] = format_figures(Path(folder) / name, name, clips, long)
    plain = rows[".npy + .json"]
    print(
        f"{len(clips)} clips, {total_bytes(clips) / 1e6:.0f} MB fp16; crop = {CROP_FRAMES} frames; (times .npy + .json)"
    )
    print(f"{'':13}" + "".join(f"{column:>18}" for column in COLUMNS))
    for name, row in rows.items():
        cells = [f"{value:.0f} ({value / base:.3g})" for value, base in zip(row, plain, strict=True)]
        print(f"{name:13}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
