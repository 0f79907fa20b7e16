"""An adapter file must mean, loaded into the base as anybody would, what the trained network computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from stages.adapters import adapter_file
from stages.adapters.attach import Adapter, attach
from stages.adapters.singular_vectors import SingularVectorCache
from stages.errors import AdapterMismatch
from stages.train.dataset.batch import Batch
from stages.train.model.network import Network

# B clips, C latent channels, T frames.

ROUNDED = {torch.float32: 5e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Relative change of the velocity that rounding the file to fp16 may make, by the base's precision.

Nine kinds were measured at 5e-4 at most on an fp32 base, and 8e-3 on a 16-bit one, where the change of one rounding
grows on its way through the layers.
"""


@dataclass(frozen=True)
class Written:
    """An adapter file, and what the network it was written from computes."""

    precision: torch.dtype
    velocity_BCT: Tensor


def check_outputs(network: Network, batch: Batch, files: Mapping[Path, Written], cache: SingularVectorCache) -> None:
    """Take the trained adapter off, attach each file's in its place, and compare what the network computes.

    The network is left without an adapter. fp32 files must give the trained outputs to the bit.

    Raises:
        AdapterMismatch: a file means something else than what was trained.
    """
    network.adapter.detach()
    for file, written in files.items():
        found = adapter_file.read(file)
        # Its start is overwritten at once, so it must not draw from torch's own generator.
        rng = torch.Generator()
        adapter = attach(
            (network.denoiser, network.conditioner), found.spec, generator=rng, singular_vector_cache=cache
        )
        adapter.load(found.tensors, file.name)
        change = _relative(outputs(replace(network, adapter=adapter), batch), written.velocity_BCT)
        adapter.detach()
        limit = 0.0 if written.precision is torch.float32 else ROUNDED[network.denoiser.dtype]
        if not change <= limit:
            raise AdapterMismatch(file.name, [f"loaded back, it changes the output by {change:.1e}, above {limit:.1e}"])


@torch.no_grad()
def outputs(network: Network, batch: Batch) -> Tensor:
    """(B, C, T) float32: what the network computes, layer by layer as anybody would."""
    network.train(False)
    with apart(network.adapter):
        return replace(network, layers=None).velocity(batch, batch.noise_BCT).float()


@contextmanager
def apart(adapter: Adapter) -> Iterator[None]:
    """Within, each tensor of the adapter lies in memory of its own, as that of a file does.

    Stacked ones lie at any address, and where a factor lies decides in which order a product adds up: that moves the
    last bit (7.5e-8 was seen on an fp32 base).
    """
    slots = [place.slot for place in adapter.attachments()]
    held = [tensor for slot in slots for tensor in (*slot.parameters(), *slot.buffers())]
    stacked = [tensor.data for tensor in held]
    for tensor in held:
        tensor.data = tensor.data.clone()
    try:
        yield
    finally:
        for tensor, place in zip(held, stacked, strict=True):
            tensor.data = place


def _relative(found_BCT: Tensor, expected_BCT: Tensor) -> float:
    return float((found_BCT - expected_BCT).norm() / expected_BCT.norm().clamp(min=1e-12))
