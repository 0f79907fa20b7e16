"""Wall time of commands on 2,000 clips: with nothing to do, after one edited caption, and after one added clip.

python tests/benchmarks/bench_noop.py [clips]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

RATE = 44100
ROUNDS = 15


def write_clip(folder: Path, number: int) -> None:
    """Writes a clip of 0.1 s of noise, and its caption."""
    audio = np.random.default_rng(number).uniform(-0.5, 0.5, (RATE // 10, 2))
    soundfile.write(folder / f"{number:05d}.wav", audio, RATE, subtype="PCM_16")
    (folder / f"{number:05d}.txt").write_text(f"noise of kind {number % 50}")


def seconds_of(command: str, data: Path, store: Path) -> float:
    """Wall time of one command, from start to exit."""
    call = [sys.executable, "-m", "pipeline", command, str(data), "--model", "tiny-base", "--store", str(store)]
    start = time.perf_counter()
    subprocess.run([*call, "--max-clips", "100000"], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Prints one line per case."""
    num_clips = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as place:
        data, store = Path(place) / "data", Path(place) / "artifacts"
        data.mkdir()
        for number in range(num_clips):
            write_clip(data, number)
        time.sleep(2.5)  # digests of younger files are not cached: their mtime may not show a change yet
        print(f"{num_clips} clips in a folder, encoded the first time   {seconds_of('encode', data, store):8.2f} s")
        for command in ("encode", "plan"):
            again = [seconds_of(command, data, store) for _ in range(ROUNDS)]
            shown = f"{statistics.median(again):8.2f} s, minimum {min(again):.2f} s"
            print(f"{f'{command}, nothing to do: median of {ROUNDS}':<51}{shown}")
        (data / "00007.txt").write_text("an edited caption")
        print(f"encode, one caption edited                         {seconds_of('encode', data, store):8.2f} s")
        write_clip(data, num_clips)
        print(f"encode, one clip added                             {seconds_of('encode', data, store):8.2f} s")


if __name__ == "__main__":
    main()
