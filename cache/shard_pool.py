"""A shard pool: a folder of shards that artifacts share, read and written by item."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from cache.errors import ItemNotFound, ShardDamaged, ShardReplaced
from cache.files.atomic_files import remove_stale_temporaries
from cache.files.disposable_sqlite import warn
from cache.fingerprint import fingerprint
from cache.location import Location
from cache.registry import Registry
from cache.shard_format import Items, ShardReader
from cache.shards import load

SHARD_MAX_ITEMS = 256
SHARD_MAX_BYTES = 64 * 2**20
MAX_OPEN_SHARDS = 128
"""Files kept open by one pool in one process."""


def shard_ranges(
    sizes: Sequence[int], max_items: int = SHARD_MAX_ITEMS, max_bytes: int = SHARD_MAX_BYTES
) -> list[range]:
    """Splits items of the given bytes into consecutive shards: each takes items until the next would exceed a limit.

    The end of a shard does not depend on anything before its start, so a run that was stopped between two shards splits
    the rest as an uninterrupted run does. An item larger than `max_bytes` gets a shard of its own.
    """
    ranges, start, num_bytes = [], 0, 0
    for number, size in enumerate(sizes):
        if number > start and (number - start >= max_items or num_bytes + size > max_bytes):
            ranges.append(range(start, number))
            start, num_bytes = number, 0
        num_bytes += size
    return [*ranges, range(start, len(sizes))] if len(sizes) else []


class ShardPool:
    """The shards of one format in one folder; picklable, and shared by any number of processes and threads.

    Args:
        say: receives messages, such as that of a damaged shard that is replaced.
    """

    def __init__(self, folder: Path, format: str = "parquet", say: Callable[[str], None] = warn) -> None:
        self.folder, self.format = Path(folder), format
        self._format, self._say = load(format), say
        self._registry = Registry(self.folder, format, say)
        self._readers: OrderedDict[str, ShardReader] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ShardPool], tuple[Path, str]]:
        return ShardPool, (self.folder, self.format)

    def shards(self) -> dict[str, tuple[int, int]]:
        """(bytes, mtime in ns) of every shard of this format, by file name."""
        found = {}
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(self._format.SUFFIX):
                    with _unless_gone():
                        found[entry.name] = _stamp(entry.stat())
        return dict(sorted(found.items()))

    def locate(self, keys: Iterable[str]) -> dict[str, Location]:
        """Locations of items, without the keys that no shard holds. Updates the registry from the folder first.

        Raises:
            ShardDamaged: a shard that is new to the registry cannot be read.
        """
        wanted = list(keys)
        for _ in range(2):  # a second time where the registry was damaged and is filled again
            self._update_registry()
            found = self._registry.find(wanted)
            if found is not None:
                return found
        return {}

    def write(self, items: Items, metadata: Mapping[str, str]) -> list[Location]:
        """Writes items to one shard named by their keys; returns their locations, in order.

        An intact shard that has the name already is kept: the locations are those of its items. A damaged one is
        reported and replaced.

        Raises:
            ValueError: the items do not form a shard.
            WriteFailed: the disk is full, or the folder cannot be written to.
        """
        keys = [key for key, _ in items]
        name = f"{_stem(keys)}{self._format.SUFFIX}"
        if not self._is_intact(name):
            self._forget_reader(name)
            self._format.write(self.folder / name, items, metadata)
        return self._register(name)

    def read(self, location: Location, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames start to stop of an item: (stop - start, channels). Reads only their bytes.

        Raises:
            ItemNotFound: its shard is gone.
            ShardDamaged: the shard cannot be read, or the item does not match its checksum (see `ShardReader.read`).
            ShardReplaced: the shard holds another item there.
        """
        return self._reader_for(location).read(location.row, start, stop)

    def new_reader(self, name: str) -> ShardReader:
        """A reader of one shard that has checked nothing yet."""
        return self._format.Reader(self.folder / name)

    def verify_shard(self, name: str) -> int:
        """Checks every item of one shard, and that its name matches its keys; returns its number of items.

        Raises:
            ShardDamaged, FileNotFoundError.
        """
        reader = self.new_reader(name)
        _check_name(reader, name)
        for row in range(len(reader.keys)):
            reader.verify(row)
        return len(reader.keys)

    def _is_intact(self, name: str) -> bool:
        """True when a shard exists and is intact; a damaged one is reported and removed."""
        try:
            self.verify_shard(name)
        except FileNotFoundError:
            return False
        except ShardDamaged as error:
            self._say(f"{error}\nIt is replaced now.")
            (self.folder / name).unlink(missing_ok=True)
            return False
        return True

    def _update_registry(self) -> None:
        with suppress(FileNotFoundError):
            remove_stale_temporaries(self.folder)  # a writer killed between link and unlink leaves its temporary name
        here, known = self.shards(), self._registry.shards()
        gone = [name for name in known if name not in here]
        if gone:
            self._registry.remove(gone)
        for name, stamp in here.items():
            if known.get(name) != stamp:
                self._forget_reader(name)
                with suppress(FileNotFoundError):  # removed since it was listed
                    self._register(name)

    def _register(self, name: str) -> list[Location]:
        """Adds one shard to the registry; returns the locations of its items."""
        reader, stamp = self._reader(name), _stamp((self.folder / name).stat())
        _check_name(reader, name)
        locations = [reader.location(row) for row in range(len(reader.keys))]
        self._registry.add(name, stamp, locations)
        return locations

    def _reader(self, name: str) -> ShardReader:
        with self._lock:
            reader = self._readers.pop(name, None) or self.new_reader(name)
            self._readers[name] = reader
            if len(self._readers) > MAX_OPEN_SHARDS:
                self._readers.popitem(last=False)
        return reader

    def _forget_reader(self, name: str) -> None:
        with self._lock:
            self._readers.pop(name, None)

    def _reader_for(self, location: Location) -> ShardReader:
        """The reader of a location's shard, after checking that the shard holds the item there."""
        reader, row = self._reader(location.shard), location.row
        try:
            num_rows = len(reader.keys)
        except FileNotFoundError:
            raise ItemNotFound(location.item_key, self.folder / location.shard) from None
        # The shard may have been replaced since the location was written to a manifest.
        if row >= num_rows or reader.location(row) != location:
            raise ShardReplaced(reader.path, f"row {row} is not item {location.item_key[:16]} ({location.checksum})")
        return reader


@contextmanager
def _unless_gone() -> Iterator[None]:
    """Passes over a shard that was removed since it was listed, and over a link to itself."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise


def _stem(keys: Sequence[str]) -> str:
    """The name of a shard of these items, without the suffix."""
    return fingerprint("shard", {"keys": list(keys)})[:32]


def _check_name(reader: ShardReader, name: str) -> None:
    if not name.startswith(_stem(reader.keys)):
        raise ShardDamaged(reader.path, "its name does not match the keys of its items: files were swapped or renamed")


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
