"""Time of ingest compared with decoding and resampling alone, and of runs with little or nothing to do.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_ingest [CLIPS] [SECONDS]

Three tables: ingest compared with decode + resample, and with these and writing 24 bit FLAC, on the same number of
processes (goal: at most 1.3 times; rounds alternate, medians are printed); peak memory for few and for many clips; a
second run, and a run with one clip changed. On a busy machine only the processor time is reliable: it is given for one
process, without its start.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile

from stages.ingest.audio.flac_writer import FlacWindows
from stages.ingest.audio.resample import resample
from stages.ingest.stage import IngestParams
from tests.small_datasets import RATE, folder, sound

CASES = (
    ("WAV 16, 44.1 kHz", "wav", "WAV", "PCM_16", RATE),
    ("WAV 24, 48 kHz", "wav", "WAV", "PCM_24", 48000),
    ("FLAC 16, 44.1 kHz", "flac", "FLAC", "PCM_16", RATE),
    ("MP3, 44.1 kHz", "mp3", "MP3", "MPEG_LAYER_III", RATE),
    ("OPUS, 48 kHz", "opus", "OGG", "OPUS", 48000),
)
ROUNDS = 3
RUN = """
import resource, sys, time
from pathlib import Path
from cache.digest_cache import DigestCache
from stages.contract import Inputs, Resources, Workspace
from stages.ingest.run import ingest
from stages.ingest.source.listing import open_source
from stages.ingest.stage import IngestParams
data, place, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
begun, cpu = time.perf_counter(), time.process_time()
source = open_source(data, DigestCache(place / "digests.sqlite"))
work = Workspace(directory=place / "scratch", shared=place / "shared", resources=Resources(workers=workers))
work.directory.mkdir(parents=True, exist_ok=True)
ingest(Inputs(source=source), IngestParams(native_samples=380 * 44100, max_clips=10**6), work)
wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
# Its own ru_maxrss would count the benchmark's, which is kept through fork and exec.
own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(wall, cpu, own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def dataset(place: Path, count: int, seconds: float, suffix: str, form: str, subtype: str, rate: int) -> Path:
    """A folder of clips of one sound at falling levels."""
    time_X = np.arange(round(seconds * rate)) / rate
    noise_XA = np.random.default_rng(0).normal(0, 0.02, (time_X.size, 2))
    music_XA = noise_XA + 0.3 * np.sin(2 * np.pi * 220 * time_X * (1 + 0.01 * np.sin(time_X)))[:, None]
    for number in range(count):
        music_XA *= 0.999  # a codec would hear no smaller difference, and the same bytes are prepared once
        data = sound(music_XA.astype(np.float32), rate, form, subtype)
        folder(place, {f"clip{number}.{suffix}": data, f"clip{number}.txt": b"music"})
    return place


def decoded(path: Path) -> None:
    """Decodes and resamples: the least that any ingest does."""
    samples(path)


def samples(path: Path) -> np.ndarray:
    """(2, X) at the model's rate."""
    audio_XA, rate = soundfile.read(io.BytesIO(path.read_bytes()), dtype="float32", always_2d=True)
    return resample(audio_XA.T, rate, RATE)


def written(path: Path) -> None:
    """Decodes, resamples and writes 24 bit FLAC at libFLAC's fastest level: the least that writes FLAC."""
    sink = FlacWindows(IngestParams(native_samples=380 * RATE), path.parent)
    audio_AX = samples(path)
    for start in range(0, audio_AX.shape[1], 1 << 15):
        sink.write(audio_AX[:, start : start + (1 << 15)])
    sink.close()


def floor_seconds(work: Callable[[Path], None], files: Sequence[Path], workers: int) -> tuple[float, float]:
    """Wall and processor time of this work on every file, in processes that have started and warmed up."""
    if workers == 1:
        work(files[0])
        return taken(lambda: [work(file) for file in files])
    with get_context("fork").Pool(workers) as pool:
        pool.map(work, files[:workers], chunksize=1)
        return taken(lambda: pool.map(work, files, chunksize=1))


def taken(call: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds of a call, and seconds of this process's processor time."""
    begun, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begun, time.process_time() - cpu


def ingested(data: Path, place: Path, workers: int) -> tuple[float, float, float, float]:
    """(seconds, seconds of this process's processor time, peak MiB of the run, peak MiB of its largest worker)."""
    command = [sys.executable, "-c", RUN, str(data), str(place), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    seconds, cpu, own, workers_peak = done.stdout.split()
    return float(seconds), float(cpu), int(own) / 1024, int(workers_peak) / 1024


def speeds(count: int, seconds: float) -> None:
    print(f"{count} clips of {seconds:g} s; times in seconds")
    heads = ("decode+resample", "and write FLAC", "ingest", "to the first", "to the second", "x real time")
    print(f"{'':<18} {'':<17}" + "".join(f"{head:>16}" for head in heads))
    for name, suffix, form, subtype, rate in CASES:
        for workers in sorted({1, min(2, os.cpu_count() or 1), os.cpu_count() or 1}):
            with tempfile.TemporaryDirectory() as place:
                data = dataset(Path(place) / "d", count, seconds, suffix, form, subtype, rate)
                wall, cpu = compared(data, sorted(data.glob(f"*.{suffix}")), Path(place), workers)
            show(name, f"{workers} at work, wall", wall, count * seconds)
            if workers == 1:
                show(name, "1 at work, cpu", cpu, count * seconds)


def show(name: str, what: str, cost: Sequence[float], total_seconds: float) -> None:
    """Prints one line: the time of decode + resample, of these with FLAC, and of ingest."""
    bare, flac, whole = cost
    ratios = f"{whole / bare:>15.2f}x{whole / flac:>15.2f}x{total_seconds / whole:>15.0f}x"
    print(f"{name:<18} {what:<17}{bare:>16.2f}{flac:>16.2f}{whole:>16.2f}{ratios}", flush=True)


def compared(data: Path, files: Sequence[Path], place: Path, workers: int) -> tuple[list[float], list[float]]:
    """Median wall and processor seconds of decode + resample, of these with writing FLAC, and of a new ingest."""
    rounds = [
        (
            floor_seconds(decoded, files, workers),
            floor_seconds(written, files, workers),
            ingested(data, place / f"store{number}", workers)[:2],
        )
        for number in range(ROUNDS)
    ]
    wall, cpu = ([statistics.median(costs[work][kind] for costs in rounds) for work in range(3)] for kind in (0, 1))
    return wall, cpu


def memory_and_reuse(counts: tuple[int, ...]) -> None:
    heads = ("first run s", "again s", "one changed s", "peak MiB", "worker MiB")
    print(f"\n{'clips of 1 s':<14}" + "".join(f"{head:>15}" for head in heads))
    for count in counts:
        with tempfile.TemporaryDirectory() as named:
            place = Path(named)
            data = dataset(place / "d", count, 1.0, "wav", "WAV", "PCM_16", RATE)
            time.sleep(2.5)  # digests of files younger than two seconds are not cached
            first, _, own, worker = ingested(data, place / "store", 2)
            again, _, _, _ = ingested(data, place / "store", 2)
            folder(data, {"clip0.txt": b"another caption", "clip1.wav": sound(np.full((RATE, 2), 0.1, np.float32))})
            one, _, _, _ = ingested(data, place / "store", 2)
            print(f"{count:<14}{first:>15.2f}{again:>15.2f}{one:>15.2f}{own:>15.0f}{worker:>15.0f}")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 24
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 20.0
    speeds(count, seconds)
    memory_and_reuse((200, 2000))


if __name__ == "__main__":
    main()
