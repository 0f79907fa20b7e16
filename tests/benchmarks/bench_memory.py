"""The memory estimate that a training prints, against real steps on the CPU of this machine.

    python tests/benchmarks/bench_memory.py

Every case runs in a process of its own, on one thread; the last column is estimated over measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from stages.bench.cases import Case, new_batch, new_training
from stages.bench.memory import PeakMemory
from stages.train.forecast.estimate import GIB, memory_estimate
from tests.measured_memory import ON_CPU, Peak, network_config

CPU = torch.device("cpu")
STEPS = 3


def measured_gib(peak: Peak) -> float:
    """Peak memory of this process."""
    case = Case(
        model="tiny-base",
        num_frames=peak.frames,
        adapter_type=peak.adapter,
        base_precision=peak.precision,
        batch_size=peak.clips,
        checkpointing=peak.checkpointing,
    )
    memory = PeakMemory(CPU)
    memory.start()
    training = new_training(case, network_config(peak.network), CPU)
    training.network.train(True)
    for step in range(STEPS):
        training.advance(new_batch(case, training, step))
    return memory.gib() or float("nan")


def row(peak: Peak) -> str:
    """Measured and estimated, side by side; the estimate is made last, since it would disturb the measurement."""
    measured, estimate = measured_gib(peak), memory_estimate(peak.setup).total_bytes / GIB
    name = f"{peak.network:9} {peak.frames:5} x {peak.clips}  {peak.precision}  {peak.adapter:12}"
    name += f" {'recomputed' if peak.checkpointing else '':10}"
    return f"{name}  {measured:7.2f}  {estimate:9.2f}  {estimate / measured:6.2f}"


def main() -> None:
    if len(sys.argv) > 1:
        torch.set_num_threads(1)
        print(row(Peak(**json.loads(sys.argv[1]))))
        return
    print(f"{'':51}  {'GiB':>7}  {'estimated':>9}  {'ratio':>6}")
    for peak in ON_CPU[::4]:
        command = [sys.executable, str(Path(__file__)), json.dumps(asdict(peak))]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)


if __name__ == "__main__":
    main()
