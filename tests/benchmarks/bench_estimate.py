"""The estimate that a training prints, against the CPU of this machine: memory and time of real steps.

    python tests/benchmarks/bench_estimate.py

Every case runs in a process of its own, on one thread. `memory` and `time` are estimated over measured. On a busy
machine the time tells little: the speed is measured once, in a tenth of a second.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from stages.bench.cases import Case, new_batch, new_training
from stages.bench.memory import PeakMemory
from stages.train.forecast.device_speed import measured_speed, seconds
from stages.train.forecast.estimate import GIB, estimated
from tests.measured_memory import Peak, network_config

CPU = torch.device("cpu")
STEPS = 3
CASES = [
    Peak("tiny-base", 108),
    Peak("tiny-base", 1024, clips=4),
    Peak("tiny-base", 512, adapter="lora"),
    Peak("tiny-base", 512, precision="bf16"),
    Peak("tiny-base", 512, recomputing=True),
    Peak("wide-512", 108),
    Peak("wide-512", 108, precision="bf16"),
    Peak("wide-512", 108, clips=4),
    Peak("wide-512", 512, adapter="bora"),
    Peak("wide-512", 512, recomputing=True),
]


def measured(peak: Peak) -> tuple[float, float]:
    """GiB and seconds of a step, in this process."""
    case = Case(
        model="tiny-base",
        num_frames=peak.frames,
        adapter_type=peak.adapter,
        base_precision=peak.precision,
        batch_size=peak.clips,
        checkpointing=peak.recomputing,
    )
    memory = PeakMemory(CPU)
    memory.start()
    training = new_training(case, network_config(peak.network), CPU)
    training.network.train(True)
    times = []
    for step in range(STEPS):
        batch = new_batch(case, training, step)
        times.append(seconds(CPU, lambda batch=batch: training.advance(batch)))
    return memory.gib() or float("nan"), statistics.median(times[1:])


def row(peak: Peak) -> str:
    """Estimated and measured, side by side; the estimate is made after the measurement, which it would disturb."""
    gib, each = measured(peak)
    estimate = estimated(peak.prospect, measured_speed(CPU, peak.prospect.dtype))
    foretold_gib, foretold = estimate.total_bytes / GIB, estimate.seconds_per_step or float("nan")
    name = f"{peak.network:9} {peak.frames:5} x {peak.clips}  {peak.precision}  {peak.adapter:10}"
    memory = f"{gib:7.2f}  {foretold_gib:9.2f}  {foretold_gib / gib:6.2f}"
    time = f"{1e3 * each:9.1f}  {1e3 * foretold:9.1f}  {foretold / each:6.2f}"
    return f"{name} {'recomputed' if peak.recomputing else '':10}  {memory}  {time}"


def main() -> None:
    if len(sys.argv) > 1:
        torch.set_num_threads(1)
        print(row(Peak(**json.loads(sys.argv[1]))))
        return
    print(f"{'':57}  {'GiB':>7}  {'estimated':>9}  {'memory':>6}  {'step ms':>9}  {'estimated':>9}  {'time':>6}")
    for peak in CASES:
        command = [sys.executable, str(Path(__file__)), json.dumps(asdict(peak))]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)


if __name__ == "__main__":
    main()
