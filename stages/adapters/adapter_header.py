"""Settings and tensor shapes of an adapter file, before its tensors are read. Light: no torch.

Two containers are taken, told apart by their bytes: safetensors, and the `.ckpt` of the reference's trainer, which is
`{"state_dict": ..., "lora_config": ...}` as `torch.save` writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import catalogue
from stages.adapters.kind import Kind, kind_named
from stages.adapters.torch_archive import MAGIC, DescribedTensor, NotTorchArchive, read_description
from stages.safetensors_header import CutShort, NotSafetensors, TooLong, check_length, read_header
from stages.text import is_lfs_pointer, other_format

CONFIG = "lora_config"
LEAVES = ("lora_A", "lora_B", "magnitude", "magnitude_r", "magnitude_c", "M_xs")
BAKED_LEAVES = ("baked_vnorm_row", "baked_norms", "norm_base")
"""Norms of the finished weight, which some runtimes want in the file; they follow from the other tensors."""
_KEY = re.compile(r"(?P<layer>.+)\.parametrizations\.weight\.0\.(?P<leaf>\w+)")
_RANK_DIMENSION = {"lora_A": 0, "lora_B": 1, "M_xs": 0}
_START_BYTES = 1024
_PICKLE = b"\x80"
_PICKLE_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")
_SETTINGS = ("rank", "alpha", "adapter_type", "dropout", "include", "exclude", "step", "epoch", "base_model")

Shapes = Mapping[str, tuple[int, ...]]


class NotAnAdapterFile(ValueError):
    """The file is in neither container, is damaged, or its settings are no settings; the message says which."""


@dataclass(frozen=True, kw_only=True)
class AdapterHeader:
    """What an adapter file says about itself."""

    config: Mapping[str, Any] | None
    """Its `lora_config`; None if it has none."""
    shapes: Shapes
    """Shape of every tensor, by file key."""
    is_archive: bool
    """Written by `torch.save`, not safetensors."""


def read_adapter_header(file: Path) -> AdapterHeader:
    """The header of an adapter file.

    Raises:
        NotAnAdapterFile: with the reason in words.
        OSError: it cannot be opened.
    """
    with file.open("rb") as stream:
        start = stream.read(_START_BYTES)
    if start.startswith(MAGIC):
        return _of_archive(file)
    if (other := _other_file(start)) is not None:
        raise NotAnAdapterFile(other)
    return _of_safetensors(file)


def _other_file(start: bytes) -> str | None:
    """What a file is that is no adapter, by its first bytes, and what to do; None if those tell nothing."""
    if not start:
        return "it is empty: download or copy it again"
    if is_lfs_pointer(start):
        return "it is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    if start[:1] == _PICKLE and start[1:2] in _PICKLE_PROTOCOLS:
        return (
            "it is a pickle, as torch.save wrote before torch 1.6, and might run code: where you trust it, load it and "
            "save its tensors as .safetensors"
        )
    if (other := other_format(start)) is not None:
        return f"it is {other}: download the file itself"
    if start.lstrip()[:1] in (b"{", b"["):
        return "it is JSON, such as an error message or the index of a file in parts: give the file with the tensors"
    return None


def state_dict_of(saved: Any) -> Mapping[str, Any]:
    """The tensors of an object that `torch.save` wrote: its `state_dict`, or all of it. Raises: NotAnAdapterFile."""
    found = saved.get("state_dict", saved) if isinstance(saved, Mapping) else None
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise NotAnAdapterFile("it holds no state_dict of tensors by name")
    if found is saved and any(isinstance(value, Mapping) for value in found.values()):
        raise NotAnAdapterFile(f"it holds no state_dict, but {', '.join(sorted(found)[:5])}")
    return found


def _of_archive(file: Path) -> AdapterHeader:
    try:
        saved = read_description(file)
    except NotTorchArchive as error:
        raise NotAnAdapterFile(str(error)) from error
    tensors = state_dict_of(saved)
    other = sorted(key for key, value in tensors.items() if not isinstance(value, DescribedTensor))
    if other:
        raise NotAnAdapterFile(f"no tensors in its state_dict: {', '.join(other[:5])}")
    config = _plain(_settings_of(saved[CONFIG])) if CONFIG in saved and "state_dict" in saved else None
    return AdapterHeader(config=config, shapes={key: one.shape for key, one in tensors.items()}, is_archive=True)


def _of_safetensors(file: Path) -> AdapterHeader:
    try:
        header = read_header(file)
        shapes = {key: tuple(entry["shape"]) for key, entry in header.tensors.items()}
        check_length(file, header)
    except (CutShort, TooLong) as error:
        raise NotAnAdapterFile(f"{error}; download or copy it again") from error
    except (NotSafetensors, KeyError, TypeError, ValueError) as error:
        raise NotAnAdapterFile("it is neither a safetensors file nor a .ckpt that torch.save wrote") from error
    text = header.metadata.get(CONFIG) if isinstance(header.metadata, dict) else None
    if text is None:
        return AdapterHeader(config=None, shapes=shapes, is_archive=False)
    return AdapterHeader(config=_object(_settings_of(text)), shapes=shapes, is_archive=False)


def _settings_of(config: object) -> object:
    """The value of `lora_config`, which is JSON in a safetensors file and may be JSON in an archive."""
    try:
        return json.loads(config) if isinstance(config, str) else config
    except (ValueError, RecursionError) as error:
        raise NotAnAdapterFile(f"its {CONFIG} is not JSON: {error}") from error


def _object(config: object) -> Mapping[str, Any]:
    if not isinstance(config, Mapping):
        raise NotAnAdapterFile(f"its {CONFIG} is not a JSON object")
    return config


def _plain(config: object) -> Mapping[str, Any]:
    """The settings that a pickle holds, as JSON would hold them; a pickle could nest others without end.

    Raises:
        NotAnAdapterFile: for what no setting is.
    """
    found = {name: value for name, value in _object(config).items() if name in _SETTINGS}
    return {name: _plain_setting(name, value) for name, value in found.items()}


def _plain_setting(name: str, value: object) -> object:
    parts = value if isinstance(value, list | tuple) else [value]
    if not all(one is None or isinstance(one, str | int | float) for one in parts):
        raise NotAnAdapterFile(f"its {CONFIG} holds no plain value as {name}")
    return list(parts) if isinstance(value, list | tuple) else value


def leaf_of(key: str) -> str:
    """The last part of a file key, `lora_A`; empty if it is not the key of an adapter's tensor."""
    parts = _KEY.fullmatch(key)
    return parts["leaf"] if parts else ""


def layer_of(key: str) -> str:
    """The layer that a file key belongs to; empty if it is not the key of an adapter's tensor."""
    parts = _KEY.fullmatch(key)
    return parts["layer"] if parts else ""


def ranks_of(shapes: Shapes) -> dict[int, str]:
    """Every rank that the shapes of the tensors show, with the first key that shows it."""
    found: dict[int, str] = {}
    for key in sorted(shapes):
        dimension = _RANK_DIMENSION.get(leaf_of(key))
        if dimension is not None and len(shapes[key]) == 2:
            found.setdefault(shapes[key][dimension], key)
    return found


def kinds_of(shapes: Shapes) -> list[str]:
    """The kinds whose tensors these may be, without the old name `dora`; several where the shapes do not tell."""
    leaves = {leaf_of(key) for key in shapes}.intersection(LEAVES)
    kinds = [name for name in catalogue.adapter_kinds() if name != "dora" and leaves_of(kind_named(name)) == leaves]
    lengths = _magnitude_lengths(shapes)
    return [name for name in kinds if not lengths or _fits(kind_named(name), lengths)] if len(kinds) > 1 else kinds


def leaves_of(kind: Kind) -> set[str]:
    """Names of the tensors of a kind."""
    low_rank = {"M_xs"} if kind.basis.singular else {"lora_A", "lora_B"}
    if kind.has_output_magnitude and kind.has_input_magnitude:
        return low_rank | {"magnitude_r", "magnitude_c"}
    return low_rank | ({"magnitude"} if kind.has_magnitude else set())


def _magnitude_lengths(shapes: Shapes) -> list[tuple[int, int, int]]:
    """(length of the magnitude, out, in) of every layer whose sizes the file shows."""
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        if parts := _KEY.fullmatch(key):
            layers.setdefault(parts["layer"], {})[parts["leaf"]] = shape
    return [
        (max(one["magnitude"], default=0), one["lora_B"][0], one["lora_A"][-1])
        for one in layers.values()
        if one.keys() >= {"magnitude", "lora_A", "lora_B"} and one["lora_A"] and one["lora_B"]
    ]


def _fits(kind: Kind, lengths: list[tuple[int, int, int]]) -> bool:
    return all(length == (num_out if kind.has_output_magnitude else num_in) for length, num_out, num_in in lengths)
