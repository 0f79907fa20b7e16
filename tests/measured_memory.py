"""Memory that trainings really took: peaks against which the estimate is tested.

The CPU's are growth of a process from after its imports (VmHWM), one thread, torch 2.13, glibc; three steps each.
CUDA's are what torch had handed out at most (max_memory_allocated), bf16, rank 16, on an H200 with torch 2.11.
All with random weights, by `tests/benchmarks/bench_memory.py` and `sa3-trainer bench`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from stages.bench.cases import config_of
from stages.models.device import dtype_named
from stages.train.forecast.estimate import MIB, TrainingSetup
from stages.train.forecast.network_size import BatchSize
from stages.train.stage import TrainParams
from tests.small_networks import GOLDEN


@dataclass(frozen=True)
class Peak:
    """One training."""

    network: str
    frames: int
    clips: int = 1
    precision: str = "fp32"
    adapter: str = "dora-rows"
    checkpointing: bool = False
    mib: float = 0
    """Measured."""
    device: str = "cpu"
    eager: bool = False
    """One operation after the other, on CUDA."""

    @property
    def setup(self) -> TrainingSetup:
        """The input of the estimate."""
        return TrainingSetup(
            config=network_config(self.network),
            params=TrainParams(
                model=self.network,
                adapter_type=self.adapter,
                base_precision=self.precision,
                batch_size=self.clips,
            ),
            batch=BatchSize(num_clips=self.clips, num_frames=self.frames),
            dtype=dtype_named(self.precision),
            device=torch.device(self.device),
            eager=self.eager,
            checkpointing=self.checkpointing,
        )

    @property
    def bytes(self) -> float:
        return self.mib * MIB


def network_config(name: str) -> Mapping[str, Any]:
    """A base model's, or one that was measured and is no model: by its transformer's width.

    `narrow-128` was tiny-base until 0.6.0; `wide-512` is small-music-base cut down to 8 blocks.
    """
    if name == "narrow-128":
        narrow: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
        return narrow
    if name != "wide-512":
        return config_of(name)
    config = deepcopy(dict(config_of("small-music-base")))
    config["model"]["diffusion"]["config"] |= {"embed_dim": 512, "depth": 8, "num_heads": 8}
    return config


def on_cuda(network: str, frames: int, gib: float, eager_gib: float | None = None, **changes: Any) -> list[Peak]:
    """Both ways of stepping."""
    both = [(gib, False), (eager_gib, True)]
    return [
        Peak(network, frames, precision="bf16", mib=1024 * each, device="cuda", eager=eager, **changes)
        for each, eager in both
        if each is not None
    ]


ON_CPU = [
    Peak("narrow-128", 108, mib=116),
    Peak("narrow-128", 108, clips=4, mib=171),
    Peak("narrow-128", 512, mib=177),
    Peak("narrow-128", 512, clips=4, mib=410),
    Peak("narrow-128", 1024, mib=240),
    Peak("narrow-128", 1024, clips=4, mib=748),
    Peak("narrow-128", 108, precision="bf16", mib=166),
    Peak("narrow-128", 108, clips=4, precision="bf16", mib=202),
    Peak("narrow-128", 512, precision="bf16", mib=201),
    Peak("narrow-128", 512, clips=4, precision="bf16", mib=353),
    Peak("narrow-128", 1024, precision="bf16", mib=249),
    Peak("narrow-128", 1024, clips=4, precision="bf16", mib=537),
    Peak("narrow-128", 512, adapter="lora", mib=153),
    Peak("narrow-128", 108, precision="bf16", adapter="lora", mib=157),
    Peak("narrow-128", 512, adapter="bora", mib=188),
    Peak("narrow-128", 108, precision="bf16", adapter="bora", mib=177),
    Peak("narrow-128", 512, adapter="dora-cols", mib=170),
    Peak("narrow-128", 108, precision="bf16", adapter="dora-cols", mib=169),
    Peak("narrow-128", 512, adapter="dora-rows-xs", mib=172),
    Peak("narrow-128", 108, precision="bf16", adapter="dora-rows-xs", mib=160),
    Peak("narrow-128", 108, checkpointing=True, mib=114),
    Peak("narrow-128", 512, checkpointing=True, mib=159),
    Peak("narrow-128", 1024, checkpointing=True, mib=205),
    Peak("narrow-128", 512, clips=4, precision="bf16", checkpointing=True, mib=297),
    Peak("wide-512", 108, mib=595),
    Peak("wide-512", 108, clips=4, mib=1381),
    Peak("wide-512", 512, mib=1179),
    Peak("wide-512", 512, clips=4, mib=3697),
    Peak("wide-512", 1024, mib=1747),
    Peak("wide-512", 1024, clips=4, mib=5216),
    Peak("wide-512", 108, precision="bf16", mib=521),
    Peak("wide-512", 108, clips=4, precision="bf16", mib=969),
    Peak("wide-512", 512, precision="bf16", mib=803),
    Peak("wide-512", 512, clips=4, precision="bf16", mib=2353),
    Peak("wide-512", 1024, precision="bf16", mib=1309),
    Peak("wide-512", 512, adapter="lora", mib=982),
    Peak("wide-512", 108, precision="bf16", adapter="lora", mib=393),
    Peak("wide-512", 512, adapter="bora", mib=1296),
    Peak("wide-512", 108, precision="bf16", adapter="bora", mib=569),
    Peak("wide-512", 512, adapter="dora-cols", mib=1074),
    Peak("wide-512", 108, precision="bf16", adapter="dora-cols", mib=515),
    Peak("wide-512", 512, adapter="dora-rows-xs", mib=1098),
    Peak("wide-512", 108, precision="bf16", adapter="dora-rows-xs", mib=524),
    Peak("wide-512", 108, checkpointing=True, mib=468),
    Peak("wide-512", 512, checkpointing=True, mib=765),
    Peak("wide-512", 1024, checkpointing=True, mib=1228),
    Peak("wide-512", 512, clips=4, precision="bf16", checkpointing=True, mib=1153),
]

ON_CUDA = [
    *on_cuda("medium-base", 108, 4.2, 4.5),
    *on_cuda("medium-base", 1024, 7.6, 9.7),
    *on_cuda("medium-base", 4091, 18.8, 26.3),
    *on_cuda("medium-base", 108, 10.1, 12.9, clips=8),
    *on_cuda("medium-base", 108, 4.1, 4.3, adapter="lora"),
    *on_cuda("medium-base", 108, 4.6, 4.8, adapter="bora"),
    *on_cuda("small-music-base", 108, 1.8, 2.0),
    *on_cuda("small-music-base", 1292, 3.8, 5.1),
    *on_cuda("medium-base", 1024, 4.8, checkpointing=True),
]
