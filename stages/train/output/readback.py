"""Readback check: an adapter file, loaded into the base, must give the output of the trained network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from stages.adapters import adapter_file
from stages.adapters.attach import Adapter, StoredWeight, attach
from stages.adapters.singular_vectors import SingularVectorCache
from stages.errors import AdapterMismatch
from stages.train.dataset.batch import Batch
from stages.train.model.network import Network

# B clips, C latent channels, T frames.

MAX_RELATIVE_CHANGE = {torch.float32: 5e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Largest relative change of the velocity that rounding the file to fp16 may cause, by the base's precision.

Nine kinds were measured at 5e-4 at most on an fp32 base, and 8e-3 on a 16-bit one, where the error of one rounding
grows through the layers.
"""


@dataclass(frozen=True)
class WrittenFile:
    """An adapter file, with the output of the network that it was written from."""

    precision: torch.dtype
    velocity_BCT: Tensor


def check_outputs(
    network: Network, batch: Batch, files: Mapping[Path, WrittenFile], cache: SingularVectorCache, stored: StoredWeight
) -> None:
    """Replace the trained adapter by that of each file, and compare outputs. Leaves the network without an adapter.

    fp32 files must give the trained outputs to the bit.

    Raises:
        AdapterMismatch: a file gives other outputs than what was trained.
    """
    network.adapter.detach()
    for file, written in files.items():
        found = adapter_file.read(file)
        # Initial values are overwritten at once, and must not be drawn from torch's global generator.
        rng = torch.Generator()
        adapter = attach(
            (network.denoiser, network.conditioner),
            found.spec,
            generator=rng,
            singular_vector_cache=cache,
            stored_weight=stored,
        )
        adapter.load(found.tensors, file.name)
        change = _relative_change(velocity_of(replace(network, adapter=adapter), batch), written.velocity_BCT)
        adapter.detach()
        limit = 0.0 if written.precision is torch.float32 else MAX_RELATIVE_CHANGE[network.denoiser.dtype]
        if not change <= limit:
            raise AdapterMismatch(file.name, [f"loaded back, it changes the output by {change:.1e}, above {limit:.1e}"])


@torch.no_grad()
def velocity_of(network: Network, batch: Batch) -> Tensor:
    """(B, C, T) float32: predicted velocity, computed layer by layer as in inference."""
    network.train(False)
    with own_memory(network.adapter):
        return replace(network, layers=None).velocity(batch, batch.noise_BCT).float()


@contextmanager
def own_memory(adapter: Adapter) -> Iterator[None]:
    """Context in which each tensor of the adapter has its own memory, as one that is read from a file has.

    Stacked tensors start at any address, and the alignment of a factor decides in which order a product adds up, which
    changes the last bit (7.5e-8 was seen on an fp32 base).
    """
    slots = [attachment.slot for attachment in adapter.attachments()]
    tensors = [tensor for slot in slots for tensor in (*slot.parameters(), *slot.buffers())]
    stacked = [tensor.data for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.clone()
    try:
        yield
    finally:
        for tensor, memory in zip(tensors, stacked, strict=True):
            tensor.data = memory


def _relative_change(found_BCT: Tensor, expected_BCT: Tensor) -> float:
    return float((found_BCT - expected_BCT).norm() / expected_BCT.norm().clamp(min=1e-12))
