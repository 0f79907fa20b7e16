"""A folder of sealed shards, read by item. What lies in it is shared by every artifact that names it."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from cache.atomic_files import sweep
from cache.disposable_sqlite import warn
from cache.errors import ItemNotFound, ShardDamaged, ShardReplaced
from cache.fingerprint import fingerprint
from cache.registry import Location, Registry
from cache.shard_format import Items, ShardReader
from cache.shards import load

SHARD_MAX_ITEMS = 256
SHARD_MAX_BYTES = 64 * 2**20
OPEN_SHARDS = 128
"""Files kept open by one shelf in one process."""

__all__ = ["SHARD_MAX_BYTES", "SHARD_MAX_ITEMS", "Location", "Shelf", "in_shards"]


def in_shards(sizes: Sequence[int], max_items: int = SHARD_MAX_ITEMS, max_bytes: int = SHARD_MAX_BYTES) -> list[range]:
    """Consecutive items of the given bytes, grouped greedily in order: a shard is full when the next would be too many.

    Where a shard ends depends on nothing before its start, so a run that was stopped after some whole shards groups
    what is left as the uninterrupted one does. An item beyond `max_bytes` gets a shard of its own.
    """
    groups, start, held = [], 0, 0
    for number, size in enumerate(sizes):
        if number > start and (number - start >= max_items or held + size > max_bytes):
            groups.append(range(start, number))
            start, held = number, 0
        held += size
    return [*groups, range(start, len(sizes))] if len(sizes) else []


class Shelf:
    """Sealed shards of one format in one folder; picklable, and shared by any number of processes and threads.

    Args:
        say: told of each decision a person may want to know, such as a damaged shard made anew.
    """

    def __init__(self, folder: Path, format: str = "parquet", say: Callable[[str], None] = warn) -> None:
        self.folder, self.format = Path(folder), format
        self._format, self._say = load(format), say
        self._registry = Registry(self.folder / f"registry-{format}.sqlite", say)
        self._readers: OrderedDict[str, ShardReader] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Shelf], tuple[Path, str]]:
        return Shelf, (self.folder, self.format)

    def shards(self) -> dict[str, tuple[int, int]]:
        """(bytes, mtime in ns) of every sealed shard of this format, by file name."""
        found = {}
        with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(self._format.SUFFIX):
                    with suppress(FileNotFoundError):  # removed since it was listed
                        found[entry.name] = _stamp(entry.stat())
        return dict(sorted(found.items()))

    def locate(self, keys: Iterable[str]) -> dict[str, Location]:
        """Where items lie; keys that no shard holds are left out. Brings the registry in step with the folder first.

        Raises:
            ShardDamaged: a shard that was not seen before cannot be read.
        """
        wanted = list(keys)
        self._keep_in_step()
        found = self._registry.find(wanted)
        if found is None:
            self._keep_in_step()
            found = self._registry.find(wanted)
        return found or {}

    def write(self, items: Items, metadata: Mapping[str, str]) -> list[Location]:
        """Seal items into one shard named by their keys; return where they lie, in order.

        A whole shard already under that name stays: the locations are those of its items. A damaged one is said, and
        made anew.

        Raises:
            ValueError: the items do not make a shard.
            WriteFailed: the disk is full or the folder refuses.
        """
        keys = [key for key, _ in items]
        name = f"{fingerprint('shard', {'keys': keys})[:32]}{self._format.SUFFIX}"
        if not self._is_whole(name):
            self._forget_reader(name)
            self._format.write(self.folder / name, items, metadata)
        return self._take_in(name)

    def read(self, location: Location, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames start to stop of an item: (stop - start, channels). Reads only their bytes.

        Raises:
            ItemNotFound: its shard is gone.
            ShardDamaged: the shard is not what it says (a whole item is checked when first read in a process).
            ShardReplaced: the shard holds something else than the location says.
        """
        return self._reader_for(location).read(location.row, start, stop)

    def check(self, location: Location) -> None:
        """Read an item and compare it with its checksum. Raises as `read`."""
        self._reader_for(location).verify(location.row)

    def verify_shard(self, name: str) -> int:
        """Check every item of one shard, and that its name is that of its keys; return how many items it holds.

        Raises:
            ShardDamaged: something is wrong.
        """
        reader = self._format.Reader(self.folder / name)
        _check_name(reader, name)
        for row in range(len(reader.keys)):
            reader.verify(row)
        return len(reader.keys)

    def _is_whole(self, name: str) -> bool:
        """True when a shard is there and sound; a damaged one is said and removed."""
        try:
            self.verify_shard(name)
        except FileNotFoundError:
            return False
        except ShardDamaged as error:
            self._say(f"{error}\nIt is made anew now.")
            (self.folder / name).unlink(missing_ok=True)
            return False
        return True

    def _keep_in_step(self) -> None:
        with suppress(FileNotFoundError):
            sweep(self.folder)  # a writer killed right after it gave a shard its name leaves the other name behind
        here, known = self.shards(), self._registry.shards()
        gone = [name for name in known if name not in here]
        if gone:
            self._registry.forget(gone)
        for name, stamp in here.items():
            if known.get(name) != stamp:
                self._forget_reader(name)
                with suppress(FileNotFoundError):  # removed since it was listed
                    self._take_in(name)

    def _take_in(self, name: str) -> list[Location]:
        """Enter one shard in the registry; return where its items lie."""
        reader, stamp = self._reader(name), _stamp((self.folder / name).stat())
        _check_name(reader, name)
        columns = zip(reader.keys, range(len(reader.keys)), reader.num_frames, reader.checksums, strict=True)
        locations = [
            Location(item_key=key, shard=name, row=row, num_frames=frames, checksum=check)
            for key, row, frames, check in columns
        ]
        self._registry.enter(name, stamp, locations)
        return locations

    def _reader(self, name: str) -> ShardReader:
        with self._lock:
            reader = self._readers.pop(name, None) or self._format.Reader(self.folder / name)
            self._readers[name] = reader
            if len(self._readers) > OPEN_SHARDS:
                self._readers.popitem(last=False)
        return reader

    def _forget_reader(self, name: str) -> None:
        with self._lock:
            self._readers.pop(name, None)

    def _reader_for(self, location: Location) -> ShardReader:
        """The reader of a location's shard, once it holds there what the location says."""
        reader, row = self._reader(location.shard), location.row
        try:
            num_rows = len(reader.keys)
        except FileNotFoundError:
            raise ItemNotFound(location.item_key, self.folder / location.shard) from None
        wanted = (location.item_key, location.num_frames, location.checksum)
        if row >= num_rows or (reader.keys[row], reader.num_frames[row], reader.checksums[row]) != wanted:
            raise ShardReplaced(reader.path, f"row {row} is not item {location.item_key[:16]} ({location.checksum})")
        return reader


def _check_name(reader: ShardReader, name: str) -> None:
    if not name.startswith(fingerprint("shard", {"keys": list(reader.keys)})[:32]):
        raise ShardDamaged(reader.path, "it holds other items than its name says, so files were swapped or renamed")


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
