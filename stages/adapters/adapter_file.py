"""Reading and writing adapter files: safetensors, keys `<layer>.parametrizations.weight.0.<leaf>`, and `lora_config`.

This is the format of the public Stable Audio 3 tools; the `.ckpt` of the reference's trainer is read too. Layer names
are relative to their root: `model.` for the denoiser, `conditioners.` for the conditioner. Frozen parts of an adapter
(singular vectors, the base) are not in the file, so an -xs file is meaningful with its own base only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cache.files.atomic_files import atomic_write_bytes
from stages import catalogue
from stages.adapters.adapter_header import (
    BAKED_LEAVES,
    CONFIG,
    LEAVES,
    AdapterHeader,
    NotAnAdapterFile,
    layer_of,
    leaf_of,
    ranks_of,
    read_adapter_header,
    state_dict_of,
)
from stages.adapters.kind import kind_named
from stages.errors import AdapterMismatch, AdapterNotWritable
from stages.records import AdapterSpec

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
    left_out: tuple[str, ...] = ()
    """Keys of baked norms, which were checked and are not among the tensors."""


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    spec: AdapterSpec,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
    made_on: Mapping[str, str | int] | None = None,
) -> None:
    """Write an adapter file whole or not at all; the same values give the same bytes.

    Args:
        tensors: by file key, as `Adapter.state` gives them.
        metadata: further entries besides `lora_config`.
        dtype: float16, as the public tools write, or float32.
        made_on: further fields of `lora_config`: `base_model` and `step`, as other tools write and compare them.

    Raises:
        AdapterNotWritable: a value is not finite, or exceeds the range of the dtype.
        ValueError: a key that is not an adapter key, another dtype, metadata that would replace `lora_config`.
        cache.errors.WriteFailed: the disk is full, or the folder is not writable.
    """
    _check_writable(path, tensors, dtype)
    if metadata is not None and CONFIG in metadata:
        raise ValueError(f"the metadata entry {CONFIG} is written from the spec")
    rounded = {key: tensors[key].detach().to("cpu", dtype).contiguous() for key in sorted(tensors)}
    atomic_write_bytes(path, _serialised(rounded, {CONFIG: _config_of(spec, made_on or {}), **(metadata or {})}))


def read(path: Path, unstated: AdapterSpec | None = None) -> AdapterFile:
    """Read an adapter file, of ours or of other tools.

    Where `lora_config` leaves them out, rank is taken from the tensors, alpha is the rank, and the kind is `lora`.

    Args:
        unstated: the settings of a file that has no `lora_config` at all; without them it is refused.

    Raises:
        AdapterMismatch: lists everything that is wrong with the file.
    """
    header = _header(path)
    config = _stated(path, header, unstated)
    whole, metadata = _contents(path, header)
    faults = [f"not floating point: {key} is {t.dtype}" for key, t in whole.items() if not t.is_floating_point()]
    # Before it is judged: of float8 torch does not even tell whether it is finite.
    whole = {key: tensor.to(torch.float32) if tensor.is_floating_point() else tensor for key, tensor in whole.items()}
    left_out = tuple(key for key in whole if leaf_of(key) in BAKED_LEAVES)
    stored = {key: tensor for key, tensor in whole.items() if key not in left_out}
    faults += [f"unknown tensor: {key}" for key in stored if leaf_of(key) not in LEAVES]
    faults += [f"not finite: {key}" for key, t in whole.items() if t.is_floating_point() and not t.isfinite().all()]
    faults += [fault for key in left_out for fault in _baked_faults(key, whole)]
    rank, rank_faults = _rank(config, stored)
    faults += rank_faults + _config_faults(config)
    if faults:
        raise AdapterMismatch(str(path), faults)
    tensors = {key: _flat_magnitude(key, tensor) for key, tensor in stored.items()}
    return AdapterFile(spec=_spec(config, rank, stored), tensors=tensors, metadata=metadata, left_out=left_out)


def _config_of(spec: AdapterSpec, made_on: Mapping[str, str | int]) -> str:
    """The JSON of `lora_config`, with the fields, types and order that the public tools write."""
    return json.dumps(
        {
            "rank": spec.rank,
            "alpha": float(spec.alpha),
            "adapter_type": spec.kind,
            "dropout": float(spec.dropout),
            "include": None if spec.include is None else list(spec.include),
            "exclude": None if spec.exclude is None else list(spec.exclude),
            **made_on,
        }
    )


def _check_writable(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    if dtype not in _DTYPE_NAMES:
        raise ValueError(f"adapter files are float16 or float32; got {dtype}")
    strange = [key for key in tensors if leaf_of(key) not in LEAVES]
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


def _header(path: Path) -> AdapterHeader:
    try:
        return read_adapter_header(path)
    except (NotAnAdapterFile, OSError) as error:
        raise AdapterMismatch(str(path), [f"cannot be read: {error}"]) from error


def _stated(path: Path, header: AdapterHeader, unstated: AdapterSpec | None) -> Mapping[str, Any]:
    """The file's `lora_config`, or settings given for a file that has none. Raises: AdapterMismatch."""
    if header.config is not None:
        return header.config
    if unstated is None:
        raise AdapterMismatch(str(path), [f"its metadata has no {CONFIG}, so its kind, rank and alpha are unknown"])
    stated: Mapping[str, Any] = json.loads(_config_of(unstated, {}))
    return stated


def _contents(path: Path, header: AdapterHeader) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, by sorted key, and the metadata."""
    if header.is_archive:
        return _contents_of_archive(path), {} if header.config is None else {CONFIG: json.dumps(header.config)}
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in sorted(file.keys())}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise AdapterMismatch(str(path), [f"cannot be read as a safetensors file: {error}"]) from error


def _contents_of_archive(path: Path) -> dict[str, Tensor]:
    """Tensors of a file that `torch.save` wrote. `weights_only` runs nothing in it; the header was checked before."""
    try:
        with path.open("rb") as stream:  # of a name, torch would look at the suffix
            found = state_dict_of(torch.load(stream, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises whatever its reader of zips and pickles comes upon
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise AdapterMismatch(str(path), [f"its tensors cannot be read: {reason}"]) from error
    return {key: found[key] for key in sorted(found)}


def _baked_faults(key: str, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """A baked norm is left out, but one that cannot be a norm of its layer tells of a damaged file."""
    layer, norms = layer_of(key), tensors[key]
    siblings = {leaf_of(other): other for other in tensors if layer_of(other) == layer}
    if not siblings.keys() & set(LEAVES):
        yield f"baked norms without an adapter: {key}"
    if norms.is_floating_point() and (norms < 0).any():
        yield f"negative norms: {key}"
    if "lora_B" in siblings and leaf_of(key) == "baked_vnorm_row":
        wanted, found = tensors[siblings["lora_B"]].shape[0], norms.numel()
        if wanted != found:
            yield f"misshapen: {key} has {found} norms, its layer has {wanted} rows"


def _rank(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[int, list[str]]:
    """The rank of the tensors, and the faults found: tensors or `lora_config` that disagree with it."""
    found = ranks_of({key: tuple(tensor.shape) for key, tensor in tensors.items()})
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
