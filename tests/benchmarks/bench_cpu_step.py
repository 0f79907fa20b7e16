"""Time of a training step on few CPU threads: factored and stacked adapters, and adapted weights built in full.

    python tests/benchmarks/bench_cpu_step.py [threads]

A transformer 512 wide with 8 blocks, float32, dora-rows of rank 16, batch 1. The variants alternate step by step, so
that a busy moment affects all of them; medians. `losses differ`: largest relative difference from the built weights.

The frozen network alone, with the products that torch takes by itself, is the floor of whatever adds to those: forward,
and backward to every layer that has an adapter in the other ways, without an adapter or an update. Where steps take
another library's products (`stages/adapters/ops/onednn_linear.py`) they may go below it.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from torch import Tensor

from stages.adapters.layer import AdaptedLayer
from stages.bench.cases import Case, new_batch, new_training
from stages.train.training import Training
from tests.dense_adapters import dense
from tests.measured_memory import network_config

CPU = torch.device("cpu")
ROUNDS = {108: 5, 1024: 3}
BUILT, BY_LAYER, STACKED, FROZEN = WAYS = ("built in full", "layer by layer", "stacked", "frozen network alone")


def forward_built(self: AdaptedLayer, tokens: Tensor) -> Tensor:
    """The product with W', built in full."""
    (slot,) = self.attached_slots()
    weight_OI = dense("dora-rows", self.matrix(), slot.leaves(), slot.scaling, self.matrix())
    return self._product(tokens, weight_OI, self.bias)


def forward_frozen(self: AdaptedLayer, tokens: Tensor) -> Tensor:
    """Through W, with the gradient of what comes out: an adapter would need it."""
    out = self._product(tokens, self.matrix(), self.bias)
    return out if out.requires_grad else out.requires_grad_()


FORWARD = {BUILT: forward_built, FROZEN: forward_frozen}


@contextmanager
def way(name: str):
    """Makes layers compute their products in one of the ways, during the block."""
    own = AdaptedLayer.forward
    AdaptedLayer.forward = FORWARD.get(name, own)
    try:
        yield
    finally:
        AdaptedLayer.forward = own


def timed(name: str, training: Training, case: Case, step: int) -> float:
    batch = new_batch(case, training, step)
    started = time.perf_counter()
    with way(name):
        if name == FROZEN:
            training.forward_backward(batch, share=1.0, scale=1.0)
        else:
            training.advance(batch)
    return time.perf_counter() - started


def losses(training: Training) -> np.ndarray:
    training.history.flush()
    return training.history.losses(1.0)


def difference(training: Training, wanted: Training) -> float:
    """Largest relative difference between the losses of two trainings."""
    return float(np.max(np.abs(losses(training) / losses(wanted) - 1)))


def measured(num_frames: int) -> None:
    case = Case(model="tiny-base", num_frames=num_frames, base_precision="fp32")
    config = network_config("wide-512")
    made = {name: new_training(case, config, CPU, stacked=name == STACKED) for name in WAYS}
    for training in made.values():
        training.network.train(True)
    rounds = range(ROUNDS[num_frames] + 1)
    times = {name: [] for name in WAYS}
    for step in rounds:
        for name, training in made.items():
            times[name].append(timed(name, training, case, step))
    slowest = statistics.median(times[BUILT][1:])
    for name, training in made.items():
        median = statistics.median(times[name][1:])
        differ = "-" if name == FROZEN else f"{difference(training, made[BUILT]):.1e}"
        print(
            f"{num_frames:>6}  {name:<20}  {1e3 * median:>5.0f} ms  {slowest / median:>5.2f} x  {differ:>7}", flush=True
        )


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    print("frames  way                       step    ratio  losses differ")
    for num_frames in ROUNDS:
        measured(num_frames)


if __name__ == "__main__":
    main()
