"""Writes adapter files and verifies that they hold what was written."""

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
class FileNames:
    """Names of the two files of an adapter."""

    exported: str
    """File in the export precision."""
    fp32: str
    """File of the values as trained."""


TRAINED = FileNames("adapter.safetensors", "adapter_fp32.safetensors")
EMA = FileNames("adapter_ema.safetensors", "adapter_ema_fp32.safetensors")
"""Files of the moving average, where there is one."""


def write_adapter_files(
    directory: Path,
    tensors: Mapping[str, Tensor],
    spec: AdapterSpec,
    metadata: Mapping[str, str],
    precision: str,
    names: FileNames = TRAINED,
) -> dict[Path, torch.dtype]:
    """Write the adapter in the export precision and in fp32, and verify both. Returns each file with its dtype.

    Raises:
        AdapterMismatch: a file does not hold what was written.
        AdapterNotWritable: a value exceeds the range of the precision.
    """
    files = {directory / names.exported: dtype_named(precision), directory / names.fp32: torch.float32}
    for file, dtype in files.items():
        adapter_file.write(file, tensors, spec, metadata, dtype, made_on(metadata))
        verify(file, {key: tensor.to(dtype) for key, tensor in tensors.items()}, spec)
    return files


def made_on(metadata: Mapping[str, str]) -> dict[str, str | int]:
    """Fields of `lora_config` beside the spec, as other tools write and compare them."""
    return {"base_model": metadata["base_model_short"], "step": int(metadata["step"])}


def verify(file: Path, expected: Mapping[str, Tensor], spec: AdapterSpec) -> None:
    """Read an adapter file back and compare. Raises: AdapterMismatch naming every difference."""
    found = adapter_file.read(file)
    wrong = [f"its spec is {found.spec}, not {spec}"] if found.spec != spec else []
    wrong += [f"tensor {key} is missing" for key in expected.keys() - found.tensors.keys()]
    wrong += [f"tensor {key} is unexpected" for key in found.tensors.keys() - expected.keys()]
    wrong += [
        f"tensor {key} differs"
        for key in expected.keys() & found.tensors.keys()
        if not torch.equal(found.tensors[key], expected[key].to(found.tensors[key].dtype))
    ]
    if wrong:
        raise AdapterMismatch(file.name, sorted(wrong))


def adapter_metadata(job: Job, step: int) -> dict[str, str]:
    """Metadata of an adapter file: its base model and step."""
    return {
        "base_model": job.model.repo or job.model.name,
        "base_model_name": job.model.name,
        "base_model_short": job.model.short_name or job.model.name,
        "base_digest": job.weights.digests["transformer"],
        "step": str(step),
    }
