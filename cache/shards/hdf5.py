"""Shards as HDF5: all items one after the other in one contiguous dataset, so that any HDF5 tool reads them and a crop
is one positioned read.

    values (total frames, channels)   offsets (items + 1)   keys   checksums   attribute `shard`: the header

The file is laid out in memory and written in one go: HDF5's own error handling on a full disk is not to be relied on.
Format 1.8 and later: its object headers carry checksums, and it stores no times unless told to.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from cache.atomic_files import written_aside
from cache.shard_format import HEADER, Header, Items, Layout, ShardReader, header_of

SUFFIX = ".h5"
_LIBVER = ("v108", "v108")


def write(path: Path, items: Items, metadata: Mapping[str, str]) -> None:
    """Seal items into one file; see ShardFormat.write."""
    header = header_of(items, metadata)
    image = _image(items, header)
    with written_aside(path, keep_first=True) as file:
        file.write(image)


def _image(items: Items, header: Header) -> bytes:
    total = sum(header.num_frames)
    with h5py.File("shard", "w", driver="core", backing_store=False, libver=_LIBVER) as file:
        values = file.create_dataset("values", (total, header.num_channels), header.dtype, track_times=False)
        offsets = np.concatenate([[0], np.cumsum(header.num_frames)]).astype("<i8")
        for (_, item), start, stop in zip(items, offsets[:-1], offsets[1:], strict=True):
            if stop > start:
                values.write_direct(item, dest_sel=np.s_[start:stop])
        file.create_dataset("offsets", data=offsets, track_times=False)
        for name, texts in (("keys", header.keys), ("checksums", header.checksums)):
            file.create_dataset(name, data=np.array([text.encode() for text in texts], "S"), track_times=False)
        file.attrs[HEADER] = np.bytes_(header.text().encode())
        file.flush()
        return bytes(file.id.get_file_image())


class Reader(ShardReader):
    """Reads one HDF5 shard; see ShardReader."""

    def layout_of(self, path: Path) -> Layout:
        """Header from the small datasets; offsets from where the contiguous dataset lies in the file."""
        with h5py.File(path, "r") as file:
            bounds, header = _index(file)
            start, values = file["values"].id.get_offset(), file["values"]
            if values.shape != (bounds[-1], header.num_channels) or values.dtype != np.dtype(header.dtype):
                raise ValueError(f"its values are {values.shape} of {values.dtype}")
            if start is None and values.nbytes:
                return Layout(header=header, offsets=None, slow_because="its values are chunked")
            if (start or 0) + values.nbytes > path.stat().st_size:
                raise ValueError("it ends before its values do")
            offsets = tuple((start or 0) + first * header.frame_bytes for first in bounds[:-1])
            return Layout(header=header, offsets=offsets)

    def slow_bytes(self, path: Path, row: int) -> bytes:
        """One item through h5py, whatever its storage."""
        with h5py.File(path, "r") as file:
            bounds, _ = _index(file)
            return np.ascontiguousarray(file["values"][bounds[row] : bounds[row + 1]]).tobytes()


def _index(file: h5py.File) -> tuple[list[int], Header]:
    bounds = [int(bound) for bound in file["offsets"][:]]
    keys, checksums = ([text.decode() for text in file[name][:]] for name in ("keys", "checksums"))
    text = bytes(file.attrs[HEADER]).decode()
    num_frames = [after - before for before, after in pairwise(bounds)]
    return bounds, Header.parsed(text, keys, num_frames, checksums)
