"""An adapter file must mean, loaded into the base as anybody would, what the trained network computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from stages.adapters import _file as adapter_file
from stages.adapters._base import attach
from stages.adapters._svd import BasesCache
from stages.errors import AdapterMismatch
from stages.train.batches import Batch
from stages.train.network import Network

# B clips, C latent channels, T frames.

ROUNDED = {torch.float32: 5e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Relative change of the velocity that rounding the file to fp16 may make, by the base's precision.

Nine kinds were measured at 5e-4 at most on an fp32 base, and 8e-3 on a 16-bit one, where the change of one rounding
grows on its way through the layers.
"""


EXACT = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""The same for a file that holds every value to the bit, which `export.compare` has seen to.

Products may still add up in another order where a factor lies at another alignment: 7.5e-8 was seen on an fp32 base.
"""


@dataclass(frozen=True)
class Written:
    """An adapter file, and what the network it was written from computes."""

    precision: torch.dtype
    velocity_BCT: Tensor


def check_outputs(network: Network, batch: Batch, files: Mapping[Path, Written], cache: BasesCache) -> None:
    """Take the trained adapter off, attach each file's in its place, and compare what the network computes.

    The network is left without an adapter.

    Raises:
        AdapterMismatch: a file means something else than what was trained.
    """
    network.adapter.detach()
    for file, written in files.items():
        found = adapter_file.read(file)
        # Its start is overwritten at once, so it must not draw from torch's own generator.
        chance = torch.Generator()
        adapter = attach((network.denoiser, network.conditioner), found.spec, generator=chance, bases_cache=cache)
        adapter.load(found.tensors, file.name)
        change = _relative(outputs(replace(network, adapter=adapter), batch), written.velocity_BCT)
        adapter.detach()
        limit = (EXACT if written.precision is torch.float32 else ROUNDED)[network.denoiser.dtype]
        if not change <= limit:
            raise AdapterMismatch(file.name, [f"loaded back, it changes the output by {change:.1e}, above {limit:.1e}"])


@torch.no_grad()
def outputs(network: Network, batch: Batch) -> Tensor:
    """(B, C, T) float32: what the network computes, layer by layer as anybody would."""
    network.train(False)
    return replace(network, layers=None).velocity(batch, batch.noise_BCT).float()


def _relative(found_BCT: Tensor, expected_BCT: Tensor) -> float:
    return float((found_BCT - expected_BCT).norm() / expected_BCT.norm().clamp(min=1e-12))
