"""Encodes the clips that the store does not hold yet, and writes their latents shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from cache.location import Location
from cache.shard_pool import ShardPool, shard_ranges
from cache.shards import formats
from stages.contract import Weights, Workspace
from stages.disk_space import SpaceNeed, check_space
from stages.encode.batching import max_batch_frames
from stages.encode.device_batches import DeviceEncoder
from stages.encode.encode_ahead import EncodeAhead, num_readers
from stages.encode.partial_shards import PartialLatents
from stages.encode.stage import SILENCE_FRAMES, EncodeParams, silence_key
from stages.errors import LatentsNotFinite, Stopped
from stages.models.device import dtype_named, pick_device, usable_dtype
from stages.models.load_weights import load_autoencoder
from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.models.nets.autoencoder.fused_blocks import triton_cache_in, use_fused_blocks


class LatentItem(Protocol):
    """Latents to be written to a shard, whether encoded or imported."""

    @property
    def key(self) -> str: ...

    @property
    def clip_id(self) -> str: ...

    @property
    def is_clip(self) -> bool: ...


T = TypeVar("T", bound=LatentItem)


@dataclass(frozen=True, kw_only=True)
class EncodeTask:
    """One clip, or silence, to be encoded."""

    key: str
    clip_id: str
    num_frames: int
    shape: tuple[int, int]
    """(samples, channels) of its audio at the model's rate."""
    fill: Callable[[np.ndarray], None]
    """Writes the audio into a float32 array of that shape."""
    is_clip: bool = True
    """False for silence, which progress does not count."""


def silence_task(params: EncodeParams, weights: Weights) -> EncodeTask:
    """Encoding of silence, whose latents extend clips beyond their end."""
    shape = (SILENCE_FRAMES * weights.sizes.downsampling_ratio, weights.sizes.audio_channels)
    key = silence_key(params, weights.digests["autoencoder"])
    zeros = lambda out_XA: out_XA.fill(0)  # noqa: E731 - shorter than its signature
    return EncodeTask(key=key, clip_id="silence", num_frames=SILENCE_FRAMES, shape=shape, fill=zeros, is_clip=False)


def encode_latents(
    pool: ShardPool, tasks: Sequence[EncodeTask], params: EncodeParams, weights: Weights, work: Workspace
) -> tuple[dict[str, Location], set[str]]:
    """Encode what the store does not hold; return the location of every task's latents and the keys encoded now."""
    located = pool.locate(task.key for task in tasks)
    located.update(
        copy_from_other_formats(pool, [task.key for task in tasks if task.key not in located], params, weights)
    )
    pending = [task for task in tasks if task.key not in located]
    partial = PartialLatents(work.directory)
    if not pending:
        # A run may have been killed after it wrote the last shard and before it deleted the saved latents.
        partial.clear()
        return located, set()
    sizes = [
        task.num_frames * weights.sizes.latent_channels * np.dtype(params.latent_dtype).itemsize for task in pending
    ]
    exported = 4 * weights.sizes.latent_channels * sum(task.num_frames for task in tasks)
    check_latents_fit(pool, sum(sizes) - partial.num_bytes(), exported, work)
    device = pick_device(work.resources.device)
    dtype = usable_dtype(dtype_named(params.compute_dtype), device, work.say)
    work.phase("loading the autoencoder")
    encoder = load_autoencoder(weights, device, dtype)
    metadata = shard_metadata(params, weights)
    if encodes_singly(device, params):

        def encode_one(task: EncodeTask) -> np.ndarray:
            return encode_clip_latents(task, encoder, params, device, dtype)

        encoded = write_shards(pool, pending, sizes, partial.cached(encode_one), metadata, work, partial.discard)
    else:
        encoded = write_shards_ahead(pool, pending, sizes, metadata, work, encoder, params, partial)
    partial.clear()
    return located | encoded, set(encoded)


def check_latents_fit(pool: ShardPool, num_bytes: int, exported: int, work: Workspace) -> None:
    """Compare the latents that are to be written with what is free on the disk.

    Args:
        num_bytes: in the store, less what an earlier run saved, which goes when it is in a shard.
        exported: bytes of all latents in the folder of --export, if there is one.

    Raises:
        InsufficientDiskSpace.
    """
    needs = [SpaceNeed(what="latents", folder=pool.folder, flag="--store", num_bytes=max(0, num_bytes))]
    if work.copied_to is not None:
        needs.append(SpaceNeed(what="their copy", folder=work.copied_to, flag="--export", num_bytes=exported))
    check_space("this dataset", needs)


def encodes_singly(device: torch.device, params: EncodeParams) -> bool:
    """Whether clips are encoded one at a time: on the CPU, where batches are no faster, and with noise per clip."""
    return device.type == "cpu" or params.encoder_noise


def write_shards_ahead(
    pool: ShardPool,
    tasks: Sequence[EncodeTask],
    sizes: Sequence[int],
    metadata: Mapping[str, str],
    work: Workspace,
    encoder: Autoencoder,
    params: EncodeParams,
    partial: PartialLatents,
) -> dict[str, Location]:
    """`write_shards` with clips encoded in batches ahead, and each shard written while the next one is encoded."""
    with triton_cache_in(work.shared / "compiled" / "triton"):
        fused = use_fused_blocks(encoder.encoder.downsampling, work.say)
    device = next(encoder.parameters()).device
    device_encoder = DeviceEncoder(
        encoder, params.latent_dtype, max_batch_frames(encoder, device, fused=fused), work.say
    )
    groups = [tasks[group.start : group.stop] for group in shard_ranges(sizes)]
    num_threads = num_readers(work.resources.workers)
    checked = lambda task, latents_TC: checked_finite(task, latents_TC, params)  # noqa: E731 - bound to these params
    check = lambda: check_stop(work, "between two batches of clips to encode")  # noqa: E731 - likewise
    with (
        EncodeAhead(groups, device_encoder, partial, num_threads, checked, check) as frames,
        ThreadPoolExecutor(1) as writer,
    ):

        def discard(keys: Iterable[str]) -> None:
            written = list(keys)
            frames.sealed(written)
            partial.discard(written)

        return write_shards(pool, tasks, sizes, frames, metadata, work, discard, writer)


def check_stop(work: Workspace, where: str) -> None:
    """Raise Stopped if a stop is requested."""
    if work.should_stop():
        raise Stopped(where)


def write_shards(
    pool: ShardPool,
    tasks: Sequence[T],
    sizes: Sequence[int],
    frames: Callable[[T], np.ndarray],
    metadata: Mapping[str, str],
    work: Workspace,
    when_written: Callable[[Iterable[str]], None] = lambda keys: None,
    writer: Executor | None = None,
) -> dict[str, Location]:
    """Compute every task's latents and write them, one shard at a time; return the location of each.

    Args:
        sizes: bytes of each task's latents, which decide where a shard ends.
        frames: computes the (T, C) latents of a task.
        when_written: called with the keys of each finished shard, in the thread that wrote it.
        writer: writes a shard while the next one is computed; None: shards are written in between.

    Raises:
        Stopped: a stop was requested, between two clips; the shards written so far are kept.
    """

    def write(items: list[tuple[str, np.ndarray]]) -> list[Location]:
        locations = pool.write(items, metadata)
        when_written(key for key, _ in items)
        return locations

    done, total = 0, sum(task.is_clip for task in tasks)
    bytes_done, bytes_total = 0, sum(sizes)
    located: list[Location] = []
    writing: Future[list[Location]] | None = None
    for group in shard_ranges(sizes):
        items = []
        for number in group:
            check_stop(work, f"at clip {done} of {total} to encode")
            items.append((tasks[number].key, frames(tasks[number])))
            done, bytes_done = done + tasks[number].is_clip, bytes_done + sizes[number]
            if total:
                work.progress(done, total, tasks[number].clip_id, bytes_done=bytes_done, bytes_total=bytes_total)
        # At most one shard waits to be written: a slow disk stalls the device instead of filling the memory.
        located += writing.result() if writing is not None else []
        writing = writer.submit(write, items) if writer is not None else _finished(write(items))
    located += writing.result() if writing is not None else []
    return {location.item_key: location for location in located}


def _finished(locations: list[Location]) -> Future[list[Location]]:
    future: Future[list[Location]] = Future()
    future.set_result(locations)
    return future


def copy_from_other_formats(
    pool: ShardPool, keys: Sequence[str], params: EncodeParams, weights: Weights
) -> dict[str, Location]:
    """Copy latents that are in shards of another format, instead of encoding them again; return their new locations."""
    copied: dict[str, Location] = {}
    for other in (ShardPool(pool.folder, format) for format in formats() if format != pool.format):
        found = list(other.locate(key for key in keys if key not in copied).values())
        sizes = [
            where.num_frames * weights.sizes.latent_channels * np.dtype(params.latent_dtype).itemsize for where in found
        ]
        for group in shard_ranges(sizes):
            items = [(where.item_key, other.read(where)) for where in found[group.start : group.stop]]
            written = pool.write(items, shard_metadata(params, weights))
            copied.update({location.item_key: location for location in written})
    return copied


@torch.inference_mode()
def encode_clip_latents(
    task: EncodeTask, encoder: Autoencoder, params: EncodeParams, device: torch.device, dtype: torch.dtype
) -> np.ndarray:
    """(T, C) latents of one clip in the storage precision, encoded with silence after it."""
    audio_XA = np.empty(task.shape, dtype=np.float32)
    task.fill(audio_XA)
    audio_AX = torch.from_numpy(audio_XA).to(device, dtype).T
    generator = torch.Generator().manual_seed(int(task.key[:15], 16)) if params.encoder_noise else None
    return as_stored(task, encoder.encode_clip(audio_AX, token_noise=generator), params)


def as_stored(task: EncodeTask, latents_CT: Tensor, params: EncodeParams) -> np.ndarray:
    """(T, C) in the storage precision."""
    with np.errstate(over="ignore"):  # an error below, which names the clip
        frames_TC = latents_CT.T.to("cpu", torch.float32).numpy().astype(params.latent_dtype)
    return checked_finite(task, np.ascontiguousarray(frames_TC), params)


def checked_finite(task: EncodeTask, frames_TC: np.ndarray, params: EncodeParams) -> np.ndarray:
    """The latents, unchanged.

    Raises:
        LatentsNotFinite: they contain NaN or infinity.
    """
    if not np.isfinite(frames_TC).all():
        raise LatentsNotFinite(task.clip_id, params.compute_dtype, params.latent_dtype)
    return frames_TC


def shard_metadata(params: EncodeParams, weights: Weights) -> dict[str, str]:
    """Metadata of a shard, enough to read its latents without the store."""
    return {
        "layout": "frames, channels",
        "dtype": params.latent_dtype,
        "sample_rate_hz": str(weights.sizes.sample_rate_hz),
        "downsampling_ratio": str(weights.sizes.downsampling_ratio),
        "autoencoder": weights.digests["autoencoder"],
    }
