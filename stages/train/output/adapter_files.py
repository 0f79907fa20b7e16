"""From trained values to adapter files, and from an adapter file to starting values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stages.adapters import adapter_file
from stages.errors import AdapterMismatch
from stages.models.device import dtype_named
from stages.records import AdapterSpec
from stages.train.job import Job


@dataclass(frozen=True)
class Names:
    """Of the two files of an adapter."""

    shared: str
    """For the world, in the precision asked for."""
    exact: str
    """In fp32."""


TRAINED = Names("adapter.safetensors", "adapter_fp32.safetensors")
AVERAGE = Names("adapter_ema.safetensors", "adapter_ema_fp32.safetensors")
"""Of the moving average, where there is one."""


def write_adapters(
    directory: Path,
    tensors: Mapping[str, Tensor],
    spec: AdapterSpec,
    metadata: Mapping[str, str],
    precision: str,
    names: Names = TRAINED,
) -> dict[Path, torch.dtype]:
    """Write the adapter for the world, in `precision`, and in fp32; read both back and compare. Returns the files.

    Raises:
        AdapterMismatch: a file does not hold what was written.
        AdapterNotWritable: a value is beyond the precision.
    """
    files = {directory / names.shared: dtype_named(precision), directory / names.exact: torch.float32}
    for file, dtype in files.items():
        adapter_file.write(file, tensors, spec, metadata, dtype)
        compare(file, {key: tensor.to(dtype) for key, tensor in tensors.items()}, spec)
    return files


def compare(file: Path, expected: Mapping[str, Tensor], spec: AdapterSpec) -> None:
    """Read an adapter file back. Raises: AdapterMismatch naming every difference."""
    found = adapter_file.read(file)
    wrong = [f"its spec is {found.spec}, not {spec}"] if found.spec != spec else []
    wrong += [f"tensor {key} is not there" for key in expected.keys() - found.tensors.keys()]
    wrong += [f"tensor {key} is too many" for key in found.tensors.keys() - expected.keys()]
    wrong += [
        f"tensor {key} differs"
        for key in expected.keys() & found.tensors.keys()
        if not torch.equal(found.tensors[key], expected[key].to(found.tensors[key].dtype))
    ]
    if wrong:
        raise AdapterMismatch(file.name, sorted(wrong))


def metadata_of(job: Job, step: int) -> dict[str, str]:
    """What an adapter file says of its origin, beside its spec."""
    return {
        "base_model": job.model.repo or job.model.name,
        "base_model_name": job.model.name,
        "base_digest": job.weights.digests["transformer"],
        "step": str(step),
    }
