"""What every latent format promises, and the part of it that is the same for all.

A shard is one sealed file of items: key -> array (frames, channels), little-endian float16 or float32, of one dtype and
one number of channels. It never changes once it has its name. Formats differ in how the file is laid out; all keep an
item's bytes in one uncompressed run, so that a crop is one positioned read, and all keep the same header, which seals
keys, lengths, checksums and metadata with a digest of their own.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
import weakref
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cache.errors import ShardDamaged
from cache.fingerprint import canonical, digest_bytes

Items = Sequence[tuple[str, np.ndarray]]
DTYPES = ("float16", "float32")
HEADER = "shard"
"""Name under which a format stores the header's text."""


class ShardFormat(Protocol):
    """What a module of this folder offers."""

    SUFFIX: str
    """Ending of its files, with the dot."""
    Reader: type[ShardReader]

    def write(self, path: Path, items: Items, metadata: Mapping[str, str]) -> None:
        """Seal items into one file: aside, fsync, rename; the same items and metadata give the same bytes.

        A file already under that name is left as it is: sealed files never change.

        Raises:
            ValueError: the items do not make a shard.
            WriteFailed: the disk is full or the folder refuses.
        """


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a shard says about its items."""

    keys: tuple[str, ...]
    num_frames: tuple[int, ...]
    checksums: tuple[str, ...]
    """crc32 of each array's bytes, eight hex digits."""
    num_channels: int
    dtype: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.num_channels * np.dtype(self.dtype).itemsize

    def text(self) -> str:
        """What a format stores beside its own index of keys, lengths and checksums."""
        common = {"dtype": self.dtype, "metadata": self.metadata, "num_channels": self.num_channels}
        return canonical({**common, "seal": digest_bytes(canonical(self))}).decode()

    @staticmethod
    def parsed(text: str, keys: Sequence[str], num_frames: Sequence[int], checksums: Sequence[str]) -> Header:
        """The header of stored text and index. ValueError or KeyError when the seal is broken."""
        stored = json.loads(text)
        seal = stored.pop("seal")
        header = Header(keys=tuple(keys), num_frames=tuple(num_frames), checksums=tuple(checksums), **stored)
        if digest_bytes(canonical(header)) != seal:
            raise ValueError("its index does not match its seal")
        return header


@dataclass(frozen=True, kw_only=True)
class Layout:
    """An opened shard: its header, and where the items' bytes lie in the file."""

    header: Header
    offsets: tuple[int, ...] | None
    """File offset of each item; None when another program wrote it so that they cannot be read in place."""
    slow_because: str = ""


def header_of(items: Items, metadata: Mapping[str, str]) -> Header:
    """The header of items about to be written. ValueError when they do not make a shard."""
    if not items:
        raise ValueError("a shard must hold at least one item")
    first = items[0][1]
    for key, values in items:
        _check_item(key, values, first)
    keys = tuple(key for key, _ in items)
    if len(set(keys)) != len(keys):
        raise ValueError("a key occurs twice in one shard")
    return Header(
        keys=keys,
        num_frames=tuple(len(values) for _, values in items),
        checksums=tuple(checksum(values) for _, values in items),
        num_channels=first.shape[1],
        dtype=first.dtype.name,
        metadata=dict(metadata),
    )


def checksum(values: np.ndarray) -> str:
    """crc32 of a C-contiguous array's bytes, eight hex digits."""
    return f"{zlib.crc32(raw(values)):08x}"


def raw(values: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array, not copied."""
    return values.reshape(-1).view(np.uint8).data


class ShardReader(ABC):
    """Reads items, or crops of them, from one sealed file. Opened at first use; picklable, and then opened anew.

    What stays open is a plain file without a position of its own, so threads and forked processes may share it.

    Raises, from every member: ShardDamaged when the file is not what it says, FileNotFoundError when it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._layout: Layout | None = None
        self._checked: set[int] = set()

    def __reduce__(self) -> tuple[type[ShardReader], tuple[Path]]:
        return type(self), (self.path,)

    @abstractmethod
    def layout_of(self, path: Path) -> Layout:
        """Look at a file and check all that can be checked without reading its items."""

    @abstractmethod
    def slow_bytes(self, path: Path, row: int) -> bytes:
        """All bytes of one item, through the format's own library."""

    @property
    def header(self) -> Header:
        """All that the file says about its items."""
        return self._opened().header

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys, in row order."""
        return self.header.keys

    @property
    def num_frames(self) -> tuple[int, ...]:
        """Length of each item."""
        return self.header.num_frames

    @property
    def checksums(self) -> tuple[str, ...]:
        """crc32 of each item's bytes, eight hex digits."""
        return self.header.checksums

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the writer added."""
        return self.header.metadata

    def read(self, row: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames start to stop of one item: (stop - start, channels), writable, in the stored dtype.

        A crop reads only its own bytes and is not checked; a whole item is checked when first read in a process.
        """
        num_frames = self._num_frames(row)
        stop = num_frames if stop is None else stop
        if not 0 <= start <= stop <= num_frames:
            raise ValueError(f"{self.path.name} row {row} has {num_frames} frames; got a crop from {start} to {stop}")
        values = self._frames(row, start, stop)
        if (start, stop) == (0, num_frames) and row not in self._checked:
            self._check(row, values)
            self._checked.add(row)
        return values

    def verify(self, row: int) -> None:
        """Read one item and compare it with its checksum, whatever was checked before."""
        self._check(row, self._frames(row, 0, self._num_frames(row)))

    def _num_frames(self, row: int) -> int:
        if not 0 <= row < len(self.keys):
            raise ValueError(f"{self.path.name} has rows 0 to {len(self.keys) - 1}; got {row}")
        return self.num_frames[row]

    def _frames(self, row: int, start: int, stop: int) -> np.ndarray:
        layout = self._opened()
        values = np.empty((stop - start, layout.header.num_channels), layout.header.dtype)
        if layout.offsets is None:
            whole = np.frombuffer(self._slow(row), layout.header.dtype).reshape(-1, layout.header.num_channels)
            values[:] = whole[start:stop]
            return values
        offset = layout.offsets[row] + start * layout.header.frame_bytes
        if self._file.read_at(raw(values), offset) < values.nbytes:
            raise ShardDamaged(self.path, f"it ends inside row {row}")
        return values

    def _slow(self, row: int) -> bytes:
        content = self._guarded(lambda: self.slow_bytes(self.path, row))
        if len(content) != self.num_frames[row] * self.header.frame_bytes:
            raise ShardDamaged(self.path, f"row {row} holds {len(content):,} bytes")
        return content

    def _check(self, row: int, values: np.ndarray) -> None:
        found, said = checksum(values), self.checksums[row]
        if found != said:
            raise ShardDamaged(self.path, f"item {self.keys[row][:16]} has checksum {found} instead of {said}")

    def _opened(self) -> Layout:
        if self._layout is None:
            with self._lock:
                self._layout = self._layout or self._look()
        return self._layout

    def _look(self) -> Layout:
        self._file = OpenFile(self.path)
        layout: Layout = self._guarded(lambda: self.layout_of(self.path))
        if layout.offsets is None:
            warnings.warn(f"{self.path}: {layout.slow_because}; crops read whole items", stacklevel=2)
        return layout

    def _guarded(self, look: Any) -> Any:
        try:
            return look()
        except (FileNotFoundError, PermissionError):
            raise
        except self.library_errors as error:
            raise ShardDamaged(self.path, str(error).strip() or type(error).__name__) from error

    library_errors: tuple[type[Exception], ...] = (ValueError, LookupError, TypeError, OSError, RuntimeError)
    """What the format's library raises for a file it cannot make sense of."""


class OpenFile:
    """A file for positioned reads, by threads and forked processes too; closed when nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, self._handle)

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """Fill the buffer from that offset on; return how many bytes there were."""
        done = 0
        while done < len(buffer):
            count = self._read(buffer[done:], offset + done)
            if count == 0:
                break
            done += count
        return done

    def _read(self, buffer: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._handle, [buffer], offset)
        with self._lock:  # Windows has no positioned read (and no fork)
            os.lseek(self._handle, offset, os.SEEK_SET)
            content = os.read(self._handle, len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _check_item(key: str, values: np.ndarray, first: np.ndarray) -> None:
    if not key or "\0" in key:
        raise ValueError(f"a key must be a text that is not empty; got {key!r}")
    if values.ndim != 2 or values.shape[1] == 0 or not values.flags.c_contiguous:
        raise ValueError(f"item {key[:16]} must be a C-contiguous array (frames, channels); got shape {values.shape}")
    if values.dtype.name not in DTYPES or not values.dtype.isnative:
        raise ValueError(f"item {key[:16]} must be of {' or '.join(DTYPES)}; got {values.dtype}")
    if (values.dtype, values.shape[1]) != (first.dtype, first.shape[1]):
        raise ValueError(
            f"all items of a shard must be of one dtype and width; item {key[:16]} is {values.dtype} of width "
            f"{values.shape[1]}, the first is {first.dtype} of width {first.shape[1]}"
        )
