"""Speed of every latent format beside plain .npy files, in one run: `python tests/benchmarks/bench_shards.py [clips]`.

Absolute figures belong to one machine on one day; compare the ratios.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cache.shards import formats
from cache.shelf import Shelf, in_shards

CROP_FRAMES = 100
CHANNELS = 256


def clips_of(num_clips: int) -> list[tuple[str, np.ndarray]]:
    """Clips of 54 to 1292 frames, as encoding makes them."""
    random = np.random.default_rng(0)
    lengths = random.integers(54, 1292, num_clips)
    return [
        (f"{number:064x}", random.standard_normal((n, CHANNELS)).astype("float16")) for number, n in enumerate(lengths)
    ]


def median_us(read: Callable[[int], object], rows: list[int], rounds: int = 5) -> float:
    """Median microseconds of one read, rows in a fixed random order."""
    order = np.random.default_rng(1).permutation(rows).tolist()
    times = []
    for _ in range(rounds):
        for row in order:
            before = time.perf_counter()
            read(row)
            times.append(time.perf_counter() - before)
    return statistics.median(times) * 1e6


def npy_figures(folder: Path, clips: list[tuple[str, np.ndarray]], long: list[int]) -> tuple[float, float, float]:
    """(write MB/s, clip us, crop us) of one .npy file per clip, each fsynced."""
    folder.mkdir()
    before = time.perf_counter()
    for key, values in clips:
        with (folder / f"{key}.npy").open("wb") as file:
            np.save(file, values)
            file.flush()
            os.fsync(file.fileno())
    seconds = time.perf_counter() - before
    paths = [folder / f"{key}.npy" for key, _ in clips]
    clip = median_us(lambda row: np.load(paths[row]), list(range(len(clips))))
    crop = median_us(lambda row: np.array(np.load(paths[row], mmap_mode="r")[50 : 50 + CROP_FRAMES]), long)
    return total_bytes(clips) / seconds / 1e6, clip, crop


def format_figures(
    folder: Path, name: str, clips: list[tuple[str, np.ndarray]], long: list[int]
) -> tuple[float, float, float]:
    """(write MB/s, clip us, crop us) of one format, through a shelf."""
    shelf, locations = Shelf(folder, name), []
    before = time.perf_counter()
    for group in in_shards([values.nbytes for _, values in clips]):
        locations += shelf.write(clips[group.start : group.stop], {"purpose": "benchmark"})
    seconds = time.perf_counter() - before
    clip = median_us(lambda row: shelf.read(locations[row]), list(range(len(clips))))
    crop = median_us(lambda row: shelf.read(locations[row], 50, 50 + CROP_FRAMES), long)
    return total_bytes(clips) / seconds / 1e6, clip, crop


def total_bytes(clips: list[tuple[str, np.ndarray]]) -> int:
    """Bytes of all latents."""
    return sum(values.nbytes for _, values in clips)


def main() -> None:
    """Print the table."""
    clips = clips_of(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
    long = [row for row, (_, values) in enumerate(clips) if len(values) >= 50 + CROP_FRAMES]
    with tempfile.TemporaryDirectory() as folder:
        figures = {".npy": npy_figures(Path(folder) / "npy", clips, long)}
        for name in formats():
            figures[name] = format_figures(Path(folder) / name, name, clips, long)
    plain = figures[".npy"]
    print(f"{len(clips)} clips, {total_bytes(clips) / 1e6:.0f} MB fp16; crop = {CROP_FRAMES} frames; (times .npy)")
    print(f"{'':8}  {'write MB/s':>16}  {'clip us':>16}  {'crop us':>16}")
    for name, row in figures.items():
        cells = [f"{value:8.0f} ({value / base:4.2f})" for value, base in zip(row, plain, strict=True)]
        print(f"{name:8}  " + "  ".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
