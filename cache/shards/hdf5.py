"""Shards as HDF5 files: items are concatenated in one contiguous dataset, so that any HDF5 tool can read them and a
crop is one positioned read.

    values (total frames, channels)   offsets (items + 1)   keys   checksums   attribute `shard`: the header

The file is built in memory and written at once: HDF5's own error handling on a full disk is not reliable. Format 1.8 is
required: its object headers have checksums, and it stores no times by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from cache.files.atomic_files import atomic_write
from cache.shard_format import HEADER, Header, Items, Layout, ShardReader, new_header

SUFFIX = ".h5"
_LIBVER = ("v108", "v108")


def write(path: Path, items: Items, metadata: Mapping[str, str]) -> None:
    """Writes items to one new file; see ShardFormat.write."""
    header = new_header(items, metadata)
    image = _image(items, header)
    with atomic_write(path, keep_existing=True) as file:
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
        file.attrs[HEADER] = np.bytes_(header.to_text().encode())
        file.flush()
        return bytes(file.id.get_file_image())


class Reader(ShardReader):
    """Reads one HDF5 shard; see ShardReader."""

    def read_layout(self, path: Path) -> Layout:
        """The header from the small datasets; offsets from the file offset of the contiguous dataset."""
        with h5py.File(path, "r") as file:
            bounds, header = _index(file)
            start, values = file["values"].id.get_offset(), file["values"]
            if values.shape != (bounds[-1], header.num_channels) or values.dtype != np.dtype(header.dtype):
                raise ValueError(f"its values are {values.shape} of {values.dtype}")
            if start is None and values.nbytes:
                return Layout(header=header, offsets=None, why_no_offsets="its values are chunked")
            if (start or 0) + values.nbytes > path.stat().st_size:
                raise ValueError("it is truncated: its values lie beyond its end")
            offsets = tuple((start or 0) + first * header.frame_bytes for first in bounds[:-1])
            return Layout(header=header, offsets=offsets)

    def read_item(self, path: Path, row: int) -> bytes:
        """One item through h5py, for any storage layout."""
        with h5py.File(path, "r") as file:
            bounds, _ = _index(file)
            return np.ascontiguousarray(file["values"][bounds[row] : bounds[row + 1]]).tobytes()


def _index(file: h5py.File) -> tuple[list[int], Header]:
    bounds = [int(bound) for bound in file["offsets"][:]]
    keys, checksums = ([text.decode() for text in file[name][:]] for name in ("keys", "checksums"))
    text = bytes(file.attrs[HEADER]).decode()
    num_frames = [after - before for before, after in pairwise(bounds)]
    return bounds, Header.parse(text, keys, num_frames, checksums)
