"""What a file of `torch.save` describes, read without its tensors and without running anything in it. Light: no torch.

Such a file is a zip of one pickle, `<name>/data.pkl`, and one member per tensor. A pickle may name any function and
have it called; here the few names that describe tensors stand for harmless ones, and every other name is refused.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

MAGIC = b"PK\x03\x04"
MAX_PICKLE_BYTES = 1 << 26
"""A longer description is taken for damage, not read into memory: that of an adapter has some 100 kB."""


class NotTorchArchive(ValueError):
    """A file that `torch.save` did not write, that is damaged, or that holds more than tensors and plain values."""


@dataclass(frozen=True)
class DescribedTensor:
    """A tensor's entry in the description."""

    shape: tuple[int, ...]


def read_description(file: Path) -> Any:
    """The saved object, with a `DescribedTensor` in place of every tensor.

    Raises:
        NotTorchArchive: with the reason in words.
        OSError: it cannot be opened.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            content = _pickle_of(archive)
        saved = _Describer(io.BytesIO(content)).load()
    except (NotTorchArchive, OSError):
        raise
    except Exception as error:  # a damaged pickle raises whatever its operations come upon
        raise NotTorchArchive(f"it is damaged ({type(error).__name__}: {error})") from error
    return saved


def _pickle_of(archive: zipfile.ZipFile) -> bytes:
    members = archive.infolist()
    descriptions = [one for one in members if one.filename.endswith("/data.pkl") and one.filename.count("/") == 1]
    if len(descriptions) != 1:
        raise NotTorchArchive("it is a zip, but not one that torch.save writes")
    if any(one.compress_type != zipfile.ZIP_STORED for one in members):
        raise NotTorchArchive("its members are compressed, as torch.save never writes them")
    if descriptions[0].file_size > MAX_PICKLE_BYTES:
        raise NotTorchArchive(f"the description of its tensors has {descriptions[0].file_size:,} bytes")
    return archive.read(descriptions[0])


def _described(storage: object, offset: int, size: tuple[int, ...], *layout: object) -> DescribedTensor:
    shape = tuple(size)
    if not all(isinstance(one, int) and one >= 0 for one in shape):
        raise NotTorchArchive("a tensor in it has no proper shape")
    # A small storage may stand for a huge tensor by strides of 0.
    if not isinstance(storage, int) or prod(shape) > storage:
        raise NotTorchArchive(f"a tensor {shape} in it is larger than what is stored of it")
    return DescribedTensor(shape)


def _parameter(value: object, *flags: object) -> object:
    return value


class _Unused:
    """Stands for what is only named or carried along: types of torch, devices, bytes of other entries."""

    def __init__(self, *arguments: object) -> None:
        pass


_KNOWN: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _described,
    ("torch._utils", "_rebuild_tensor_v3"): _described,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "device"): _Unused,
    ("collections", "Counter"): _Unused,
    ("_codecs", "encode"): _Unused,
    **{(module, "set"): _Unused for module in ("builtins", "__builtin__")},
}
"""What torch itself loads as harmless, as far as the file of a trainer holds it beside the tensors."""
_DTYPE = re.compile(r"(b?float|u?int|complex)\d+(_\w+)?|bool|half|double|long")


class _Describer(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return _Unused
        if module == "torch" and _DTYPE.fullmatch(name):
            return _Unused
        if (module, name) not in _KNOWN:
            raise NotTorchArchive(
                f"it calls for {module}.{name}, which is no part of an adapter and could run code: it was not loaded"
            )
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> int:
        """The number of values of a storage."""
        count = pid[4] if isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" else None
        if not isinstance(count, int):
            raise NotTorchArchive("it is damaged (a tensor has no storage)")
        return count
