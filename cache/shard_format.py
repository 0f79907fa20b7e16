"""The interface of a latent format, and the code that all formats share.

A shard is one immutable file of items: key -> array (frames, channels), little-endian float16 or float32, all of one
dtype and one number of channels. Formats differ in the layout of the file. All store the bytes of an item contiguously
and uncompressed, so that a crop is one positioned read, and all store the same header, whose digest covers keys,
lengths, checksums and metadata.
"""

from __future__ import annotations

import errno
import json
import os
import stat
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
from cache.location import Location

Items = Sequence[tuple[str, np.ndarray]]
DTYPES = ("float16", "float32")
HEADER = "shard"
"""Name under which a format stores `Header.to_text`."""


class ShardFormat(Protocol):
    """What a module of cache/shards must define."""

    SUFFIX: str
    """Suffix of its files, with the dot."""
    Reader: type[ShardReader]

    def write(self, path: Path, items: Items, metadata: Mapping[str, str]) -> None:
        """Writes items to one new file, atomically; the same items and metadata give the same bytes.

        A file that has the name already is left as it is: shards never change.

        Raises:
            ValueError: the items do not form a shard.
            WriteFailed: the disk is full, or the folder cannot be written to.
        """


@dataclass(frozen=True, kw_only=True)
class Header:
    """The description of a shard's items that is stored with them."""

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

    def to_text(self) -> str:
        """What a format stores beside its own index of keys, lengths and checksums: the rest, and the digest of all."""
        common = {"dtype": self.dtype, "metadata": self.metadata, "num_channels": self.num_channels}
        return canonical({**common, "seal": digest_bytes(canonical(self))}).decode()

    @staticmethod
    def parse(text: str, keys: Sequence[str], num_frames: Sequence[int], checksums: Sequence[str]) -> Header:
        """The header from stored text and index. Raises: ValueError or KeyError, when the digest does not match."""
        stored = json.loads(text)
        digest = stored.pop("seal")
        header = Header(keys=tuple(keys), num_frames=tuple(num_frames), checksums=tuple(checksums), **stored)
        if digest_bytes(canonical(header)) != digest:
            raise ValueError("its index does not match its digest")
        return header


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The header of an opened shard, and the file offsets of its items."""

    header: Header
    offsets: tuple[int, ...] | None
    """File offset of each item; None when another program wrote the file so that items cannot be read in place."""
    why_no_offsets: str = ""


def new_header(items: Items, metadata: Mapping[str, str]) -> Header:
    """The header of items about to be written. Raises: ValueError, when they do not form a shard."""
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
    return f"{zlib.crc32(bytes_view(values)):08x}"


def bytes_view(values: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array, without a copy."""
    return values.reshape(-1).view(np.uint8).data


class ShardReader(ABC):
    """Reads items, or crops of them, from one shard. Opened at first use; picklable, the copy opens the file again.

    Only positioned reads are used on the open file, so threads and forked processes may share a reader.

    Every member raises ShardDamaged when the file cannot be read or does not match its checksums, and FileNotFoundError
    when it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._layout: Layout | None = None
        self._checked: set[int] = set()

    def __reduce__(self) -> tuple[type[ShardReader], tuple[Path]]:
        return type(self), (self.path,)

    @abstractmethod
    def read_layout(self, path: Path) -> Layout:
        """Reads the layout of a file, with all checks that need not read the items."""

    @abstractmethod
    def read_item(self, path: Path, row: int) -> bytes:
        """All bytes of one item, read through the format's own library."""

    @property
    def header(self) -> Header:
        """The header of the file."""
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
        """Metadata given by the writer."""
        return self.header.metadata

    def location(self, row: int) -> Location:
        """The location of one item."""
        return Location(
            item_key=self.keys[row],
            shard=self.path.name,
            row=row,
            num_frames=self.num_frames[row],
            checksum=self.checksums[row],
        )

    def read(self, row: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames start to stop of one item: (stop - start, channels), writable, in the stored dtype.

        When a process first reads an item, it reads every byte and compares the checksum; from then on, only the bytes
        of these frames are read.
        """
        num_frames = self._num_frames(row)
        stop = num_frames if stop is None else stop
        if not 0 <= start <= stop <= num_frames:
            raise ValueError(f"{self.path.name} row {row} has {num_frames} frames; got a crop from {start} to {stop}")
        if row in self._checked or start == stop:
            return self._frames(row, start, stop)
        whole = self._frames(row, 0, num_frames)
        self._check(row, whole)
        self._checked.add(row)
        return whole if len(whole) == stop - start else whole[start:stop].copy()

    def verify(self, row: int) -> None:
        """Reads one item and compares it with its checksum, also when that was done before."""
        self._check(row, self._frames(row, 0, self._num_frames(row)))

    def _num_frames(self, row: int) -> int:
        if not 0 <= row < len(self.keys):
            raise ValueError(f"{self.path.name} has rows 0 to {len(self.keys) - 1}; got {row}")
        return self.num_frames[row]

    def _frames(self, row: int, start: int, stop: int) -> np.ndarray:
        layout = self._opened()
        values = np.empty((stop - start, layout.header.num_channels), layout.header.dtype)
        if layout.offsets is None:
            whole = np.frombuffer(self._item(row), layout.header.dtype).reshape(-1, layout.header.num_channels)
            values[:] = whole[start:stop]
            return values
        offset = layout.offsets[row] + start * layout.header.frame_bytes
        if self._file.read_at(bytes_view(values), offset) < values.nbytes:
            raise ShardDamaged(self.path, f"it ends inside row {row}")
        return values

    def _item(self, row: int) -> bytes:
        content = self._translating_errors(lambda: self.read_item(self.path, row))
        if len(content) != self.num_frames[row] * self.header.frame_bytes:
            raise ShardDamaged(self.path, f"row {row} holds {len(content):,} bytes")
        return content

    def _check(self, row: int, values: np.ndarray) -> None:
        found, stored = checksum(values), self.checksums[row]
        if found != stored:
            raise ShardDamaged(self.path, f"item {self.keys[row][:16]} has checksum {found} instead of {stored}")

    def _opened(self) -> Layout:
        if self._layout is None:
            with self._lock:
                self._layout = self._layout or self._open()
        return self._layout

    def _open(self) -> Layout:
        self._file = self._translating_errors(lambda: RandomAccessFile(self.path))
        layout: Layout = self._translating_errors(lambda: self.read_layout(self.path))
        if layout.offsets is None:
            warnings.warn(f"{self.path}: {layout.why_no_offsets}; crops read whole items", stacklevel=2)
        return layout

    def _translating_errors(self, read: Any) -> Any:
        try:
            return read()
        except (FileNotFoundError, PermissionError):
            raise
        except self.library_errors as error:
            if isinstance(error, OSError) and error.errno in _OUT_OF:
                raise
            raise ShardDamaged(self.path, str(error).strip() or type(error).__name__) from error

    library_errors: tuple[type[Exception], ...] = (ValueError, LookupError, TypeError, OSError, RuntimeError)
    """What the format's library raises for a file it cannot read."""


_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What the process has run out of; the file may be as it should."""
_FLAGS = getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""Opening a pipe that lies in place of a file would wait for ever."""


class RandomAccessFile:
    """A file for positioned reads, shared by threads and forked processes; closed when it is garbage-collected."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY | _FLAGS)
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, self._handle)
        if not stat.S_ISREG(os.fstat(self._handle).st_mode):
            raise OSError(errno.EINVAL, "no regular file is there", str(path))

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """Fills the buffer from an offset on; returns the number of bytes read, fewer at the end of the file."""
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
        raise ValueError(f"a key must be a string that is not empty; got {key!r}")
    if values.ndim != 2 or values.shape[1] == 0 or not values.flags.c_contiguous:
        raise ValueError(f"item {key[:16]} must be a C-contiguous array (frames, channels); got shape {values.shape}")
    if values.dtype.name not in DTYPES or not values.dtype.isnative:
        raise ValueError(f"item {key[:16]} must be of {' or '.join(DTYPES)}; got {values.dtype}")
    if (values.dtype, values.shape[1]) != (first.dtype, first.shape[1]):
        raise ValueError(
            f"all items of a shard must be of one dtype and width; item {key[:16]} is {values.dtype} of width "
            f"{values.shape[1]}, the first is {first.dtype} of width {first.shape[1]}"
        )
