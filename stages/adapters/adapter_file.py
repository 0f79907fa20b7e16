"""Reading and writing adapter files: safetensors, keys `<layer>.parametrizations.weight.0.<leaf>`, and `lora_config`.

This is the format of the public Stable Audio 3 tools. Layer names are relative to their root: `model.` for the
denoiser, `conditioners.` for the conditioner. Frozen parts of an adapter (singular vectors, the base) are not in the
file, so an -xs file is meaningful with its own base only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cache.files.atomic_files import atomic_write_bytes
from stages import catalogue
from stages.adapters.kind import kind_named
from stages.errors import AdapterMismatch, AdapterNotWritable
from stages.records import AdapterSpec

CONFIG = "lora_config"
_KEY = re.compile(r".+\.parametrizations\.weight\.0\.(lora_A|lora_B|magnitude|magnitude_r|magnitude_c|M_xs)")
_RANK_DIMENSION = {"lora_A": 0, "lora_B": 1, "M_xs": 0}
_KIND_UNLESS_STATED = "lora"
_DTYPE_NAMES = {torch.float16: "F16", torch.float32: "F32"}


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """The contents of an adapter file."""

    spec: AdapterSpec
    """Its kind resolved: the old name `dora` becomes `dora-rows` or, by the shape of the magnitudes, `dora-cols`."""
    tensors: Mapping[str, Tensor]
    """float32, by file key."""
    metadata: Mapping[str, str]
    """As stored, including `lora_config`."""


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    spec: AdapterSpec,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write an adapter file whole or not at all; the same values give the same bytes.

    Args:
        tensors: by file key, as `Adapter.state` gives them.
        metadata: further entries besides `lora_config`.
        dtype: float16, as the public tools write, or float32.

    Raises:
        AdapterNotWritable: a value is not finite, or exceeds the range of the dtype.
        ValueError: a key that is not an adapter key, another dtype, metadata that would replace `lora_config`.
        cache.errors.WriteFailed: the disk is full, or the folder is not writable.
    """
    _check_writable(path, tensors, dtype)
    if metadata is not None and CONFIG in metadata:
        raise ValueError(f"the metadata entry {CONFIG} is written from the spec")
    rounded = {key: tensors[key].detach().to("cpu", dtype).contiguous() for key in sorted(tensors)}
    atomic_write_bytes(path, _serialised(rounded, {CONFIG: _config_of(spec), **(metadata or {})}))


def read(path: Path) -> AdapterFile:
    """Read an adapter file, of ours or of other tools.

    Where `lora_config` leaves them out, rank is taken from the tensors, alpha is the rank, and the kind is `lora`.

    Raises:
        AdapterMismatch: lists everything that is wrong with the file.
    """
    stored, metadata = _contents(path)
    config = _config(path, metadata)
    faults = [f"unknown tensor: {key}" for key in stored if not _KEY.fullmatch(key)]
    faults += [f"not floating point: {key} is {t.dtype}" for key, t in stored.items() if not t.is_floating_point()]
    faults += [f"not finite: {key}" for key, t in stored.items() if t.is_floating_point() and not t.isfinite().all()]
    rank, rank_faults = _rank(config, stored)
    faults += rank_faults + _config_faults(config)
    if faults:
        raise AdapterMismatch(str(path), faults)
    tensors = {key: _flat_magnitude(key, tensor.to(torch.float32)) for key, tensor in stored.items()}
    return AdapterFile(spec=_spec(config, rank, stored), tensors=tensors, metadata=metadata)


def _config_of(spec: AdapterSpec) -> str:
    """The JSON of `lora_config`, with the fields, types and order that the public tools write."""
    return json.dumps(
        {
            "rank": spec.rank,
            "alpha": float(spec.alpha),
            "adapter_type": spec.kind,
            "dropout": float(spec.dropout),
            "include": None if spec.include is None else list(spec.include),
            "exclude": None if spec.exclude is None else list(spec.exclude),
        }
    )


def _check_writable(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    if dtype not in _DTYPE_NAMES:
        raise ValueError(f"adapter files are float16 or float32; got {dtype}")
    strange = [key for key in tensors if not _KEY.fullmatch(key)]
    if strange:
        raise ValueError(f"not the name of an adapter tensor: {', '.join(strange)}")
    not_finite = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
    too_large = [key for key, t in tensors.items() if key not in not_finite and not t.to(dtype).isfinite().all()]
    if not_finite or too_large:
        precision = str(dtype).removeprefix("torch.")
        raise AdapterNotWritable(str(path), precision, not_finite=sorted(not_finite), too_large=sorted(too_large))


def _serialised(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file: header length, JSON header padded to eight bytes, tensors.

    The library's own writer orders metadata entries differently from run to run; here the same values give the same
    bytes.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    start = 0
    for key, tensor in tensors.items():
        stop = start + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(tensor.numpy().tobytes() for tensor in tensors.values())])


def _contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in sorted(file.keys())}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise AdapterMismatch(str(path), [f"cannot be read as a safetensors file: {error}"]) from error


def _config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if CONFIG not in metadata:
        raise AdapterMismatch(str(path), [f"its metadata has no {CONFIG}, so its kind, rank and alpha are unknown"])
    try:
        config = json.loads(metadata[CONFIG])
    except ValueError as error:
        raise AdapterMismatch(str(path), [f"its {CONFIG} is not JSON: {error}"]) from error
    if not isinstance(config, dict):
        raise AdapterMismatch(str(path), [f"its {CONFIG} is not a JSON object"])
    return config


def _rank(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[int, list[str]]:
    """The rank of the tensors, and the faults found: tensors or `lora_config` that disagree with it."""
    found: dict[int, str] = {}
    for key, tensor in tensors.items():
        dimension = _RANK_DIMENSION.get(key.rpartition(".")[2])
        if dimension is not None and tensor.ndim == 2:
            found.setdefault(tensor.shape[dimension], key)
    if not found:
        return 0, ["it holds no lora_A, lora_B or M_xs"]
    if len(found) > 1:
        return 0, [f"rank {rank}: {key}" for rank, key in found.items()]
    (rank,) = found
    if config.get("rank") not in (None, rank):
        return rank, [f"its {CONFIG} says rank {config['rank']!r}, its tensors have {rank}"]
    return rank, []


def _config_faults(config: Mapping[str, Any]) -> list[str]:
    stated = config.get("adapter_type", _KIND_UNLESS_STATED)
    rules = [
        ("adapter_type", stated in catalogue.adapter_kinds(), f"one of {', '.join(catalogue.adapter_kinds())}"),
        ("alpha", config.get("alpha") is None or _is_number(config["alpha"]), "a finite number"),
        ("dropout", config.get("dropout") is None or _is_number(config["dropout"]), "a finite number"),
        ("include", _are_patterns(config.get("include")), "a list of strings or null"),
        ("exclude", _are_patterns(config.get("exclude")), "a list of strings or null"),
    ]
    return [f"its {name} must be {rule}; it is {config.get(name)!r}" for name, holds, rule in rules if not holds]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_patterns(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _spec(config: Mapping[str, Any], rank: int, tensors: Mapping[str, Tensor]) -> AdapterSpec:
    kind = _resolved_kind(config.get("adapter_type", _KIND_UNLESS_STATED), tensors)
    include, exclude = config.get("include"), config.get("exclude")
    # Other tools write a dropout for -xs kinds and never apply it.
    dropout = 0.0 if kind_named(kind).basis.singular else float(config.get("dropout") or 0.0)
    return AdapterSpec(
        kind=kind,
        rank=rank,
        alpha=float(rank if config.get("alpha") is None else config["alpha"]),
        dropout=dropout,
        include=None if include is None else tuple(include),
        exclude=None if exclude is None else tuple(exclude),
    )


def _resolved_kind(stated: str, tensors: Mapping[str, Tensor]) -> str:
    """Old files say `dora` for two kinds: magnitudes (1, in) mean `dora-cols`, (out, 1) and (out,) `dora-rows`."""
    if stated != "dora":
        return stated
    magnitude = next((tensor for key, tensor in sorted(tensors.items()) if key.endswith(".magnitude")), None)
    return "dora-cols" if magnitude is not None and magnitude.ndim == 2 and magnitude.shape[0] == 1 else "dora-rows"


def _flat_magnitude(key: str, tensor: Tensor) -> Tensor:
    """The tensor with a magnitude of an old file, (1, in) or (out, 1), flattened."""
    return tensor.flatten() if key.endswith(".magnitude") and tensor.ndim == 2 and 1 in tensor.shape else tensor
