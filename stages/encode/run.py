"""Prepared audio and prompts in, latents and prompt embeddings out; what the store holds already is not made again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from cache.location import Location
from cache.manifest import read_rows, write_rows
from cache.shard_pool import ShardPool, shard_ranges
from cache.shards import formats
from stages.contract import Inputs, Outcome, Weights, Workspace
from stages.encode.batching import frames_at_once
from stages.encode.device_batches import OnDevice
from stages.encode.encode_ahead import Ahead, num_readers
from stages.encode.partial_shards import Pieces
from stages.encode.stage import SILENCE_FRAMES, EncodeParams, ImportParams, item_key, prompt_key, silence_key
from stages.errors import LatentsNotFinite, Stopped
from stages.models.device import dtype_named, pick_device, set_threads, usable_dtype
from stages.models.load_weights import load_autoencoder, load_text_encoder
from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.models.nets.autoencoder.fused_blocks import triton_cache_in, use_fused_blocks
from stages.models.nets.text_encoder import TextEncoder
from stages.prepared_audio import read_prepared_into
from stages.records import Clip, EncodedClip, PromptRow


class Item(Protocol):
    """Latents to be stored, whether they are encoded or read."""

    @property
    def key(self) -> str: ...

    @property
    def clip_id(self) -> str: ...

    @property
    def is_clip(self) -> bool: ...


T = TypeVar("T", bound=Item)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One item of latents to be made."""

    key: str
    clip_id: str
    num_frames: int
    shape: tuple[int, int]
    """(samples, channels) of its audio at the model's rate."""
    fill: Callable[[np.ndarray], None]
    """Writes the audio into a float32 array of that shape."""
    is_clip: bool = True
    """False for the silence, which is counted nowhere."""


def encode(inputs: Inputs, params: EncodeParams, work: Workspace) -> Outcome:
    """Encode each clip and each prompt that the store does not hold yet, one sealed shard at a time."""
    set_threads(work.resources.threads)
    ingest, weights = inputs.artifacts["ingest"], _present(inputs.weights)
    clips = read_rows(ingest.directory / "manifest.parquet", Clip)
    keys = [
        item_key(clip.digest, clip.crop_start, ingest.facts["audio_params"], params, weights.digests["autoencoder"])
        for clip in clips
    ]
    latents = ShardPool(work.shared / "latents", params.latent_format, work.say)
    tasks = [silence_task(params, weights), *clip_tasks(clips, keys, weights, work)]
    located, encoded = encoded_items(latents, tasks, params, weights, work)
    pool = ShardPool(work.shared / "prompts", params.latent_format, work.say)
    prompts = encoded_prompts(pool, (clip.prompt for clip in clips), weights, work)
    rows = [
        encoded_row(clip, located[key], prompt_keys(weights)(clip.prompt), weights)
        for clip, key in zip(clips, keys, strict=True)
    ]
    write_rows(work.directory / "manifest.parquet", rows, EncodedClip)
    write_rows(work.directory / "prompts.parquet", prompts.rows, PromptRow)
    return Outcome(
        facts=facts(params, ingest.facts, rows, located[tasks[0].key], encoded, prompts.num_encoded, weights)
    )


def facts(
    params: EncodeParams | ImportParams,
    ingested: Mapping[str, object],
    rows: Sequence[EncodedClip],
    silence: Location,
    encoded: set[str],
    num_prompts_encoded: int,
    weights: Weights,
) -> dict[str, object]:
    """What later stages and people read without opening the manifest."""
    made = sum(row.item_key in encoded for row in rows)
    kept = (
        *("window_samples", "window_frames", "duration_seconds", "total_seconds", "num_clips", "dataset"),
        *("trigger_phrase", "skipped"),
    )
    return {
        **{name: ingested[name] for name in kept if name in ingested},
        "num_encoded": made,
        "num_reused": len(rows) - made,
        "num_prompts": len({row.prompt_key for row in rows}),
        "num_prompts_encoded": num_prompts_encoded,
        "latent_format": params.latent_format,
        "latent_dtype": params.latent_dtype,
        "latent_channels": weights.sizes.latent_channels,
        "num_frames": sum(row.num_frames for row in rows),
        "silence": asdict(silence),
    }


def silence_task(params: EncodeParams, weights: Weights) -> Task:
    """The latents that fill a clip's extension into silence."""
    shape = (SILENCE_FRAMES * weights.sizes.downsampling_ratio, weights.sizes.audio_channels)
    key = silence_key(params, weights.digests["autoencoder"])
    quiet = lambda out_XA: out_XA.fill(0)  # noqa: E731 - shorter than its signature
    return Task(key=key, clip_id="silence", num_frames=SILENCE_FRAMES, shape=shape, fill=quiet, is_clip=False)


def clip_tasks(clips: Sequence[Clip], keys: Sequence[str], weights: Weights, work: Workspace) -> list[Task]:
    """One task per different item: two files with the same bytes are encoded once."""
    ratio = weights.sizes.downsampling_ratio
    tasks: dict[str, Task] = {}
    for clip, key in zip(clips, keys, strict=True):
        tasks[key] = tasks.get(key) or Task(
            key=key,
            clip_id=clip.clip_id,
            num_frames=-(-clip.num_samples // ratio),
            shape=(clip.num_samples, 2),
            fill=partial(read_prepared_into, work.shared / clip.audio),
        )
    return list(tasks.values())


def encoded_items(
    pool: ShardPool, tasks: Sequence[Task], params: EncodeParams, weights: Weights, work: Workspace
) -> tuple[dict[str, Location], set[str]]:
    """Where every task's latents lie, and which were made now."""
    located = pool.locate(task.key for task in tasks)
    located.update(copied_items(pool, [task.key for task in tasks if task.key not in located], params, weights))
    pending = [task for task in tasks if task.key not in located]
    pieces = Pieces(work.directory)
    if not pending:
        # A run may have been killed between sealing a shard and letting go of its pieces.
        pieces.clear()
        return located, set()
    sizes = [
        task.num_frames * weights.sizes.latent_channels * np.dtype(params.latent_dtype).itemsize for task in pending
    ]
    device = pick_device(work.resources.device)
    dtype = usable_dtype(dtype_named(params.compute_dtype), device, work.say)
    encoder = load_autoencoder(weights, device, dtype)
    metadata = shard_metadata(params, weights)
    if one_by_one(device, params):

        def alone(task: Task) -> np.ndarray:
            return frames_of(task, encoder, params, device, dtype)

        made = sealed(pool, pending, sizes, pieces.keeping(alone), metadata, work, pieces.let_go)
    else:
        made = sealed_ahead(pool, pending, sizes, metadata, work, encoder, params, pieces)
    pieces.clear()
    return located | made, set(made)


def one_by_one(device: torch.device, params: EncodeParams) -> bool:
    """The CPU gains nothing from a batch; noise is drawn for one clip at a time."""
    return device.type == "cpu" or params.encoder_noise


def sealed_ahead(
    pool: ShardPool,
    tasks: Sequence[Task],
    sizes: Sequence[int],
    metadata: Mapping[str, str],
    work: Workspace,
    encoder: Autoencoder,
    params: EncodeParams,
    pieces: Pieces,
) -> dict[str, Location]:
    """`sealed` with a device that encodes batches while this process reads, and writes shards beside it."""
    with triton_cache_in(work.shared / "compiled" / "triton"):
        fused = use_fused_blocks(encoder.encoder.downsampling, work.say)
    device = next(encoder.parameters()).device
    on_device = OnDevice(encoder, params.latent_dtype, frames_at_once(encoder, device, fused=fused), work.say)
    groups = [tasks[group.start : group.stop] for group in shard_ranges(sizes)]
    readers = num_readers(work.resources.workers)
    checked = lambda task, latents_TC: finite(task, latents_TC, params)  # noqa: E731 - bound to these params
    check = lambda: check_stop(work, "between two batches of clips to encode")  # noqa: E731 - likewise
    with Ahead(groups, on_device, pieces, readers, checked, check) as frames, ThreadPoolExecutor(1) as writer:

        def let_go(keys: Iterable[str]) -> None:
            names = list(keys)
            frames.sealed(names)
            pieces.let_go(names)

        return sealed(pool, tasks, sizes, frames, metadata, work, let_go, writer)


def check_stop(work: Workspace, where: str) -> None:
    """Raises Stopped when asked to."""
    if work.should_stop():
        raise Stopped(where)


def sealed(
    pool: ShardPool,
    tasks: Sequence[T],
    sizes: Sequence[int],
    frames: Callable[[T], np.ndarray],
    metadata: Mapping[str, str],
    work: Workspace,
    when_sealed: Callable[[Iterable[str]], None] = lambda keys: None,
    writer: Executor | None = None,
) -> dict[str, Location]:
    """Make every task's (frames, channels) latents and seal them, one shard at a time.

    Args:
        sizes: bytes of each, for where a shard ends.
        when_sealed: told the keys of each shard that is whole, by whoever wrote it.
        writer: seals a shard while the next one is made; None: it is sealed here, before that.

    Raises:
        Stopped: asked to, between two clips; the shards sealed so far stay.
    """

    def seal(items: list[tuple[str, np.ndarray]]) -> list[Location]:
        locations = pool.write(items, metadata)
        when_sealed(key for key, _ in items)
        return locations

    done, total = 0, sum(task.is_clip for task in tasks)
    located: list[Location] = []
    sealing: Future[list[Location]] | None = None
    for group in shard_ranges(sizes):
        items = []
        for number in group:
            check_stop(work, f"at clip {done} of {total} to encode")
            items.append((tasks[number].key, frames(tasks[number])))
            done += tasks[number].is_clip
            if total:
                work.progress(done, total, tasks[number].clip_id)
        # One shard at most waits to be written: a slow disk holds the device up instead of filling the memory.
        located += sealing.result() if sealing is not None else []
        sealing = writer.submit(seal, items) if writer is not None else _done(seal(items))
    located += sealing.result() if sealing is not None else []
    return {location.item_key: location for location in located}


def _done(locations: list[Location]) -> Future[list[Location]]:
    future: Future[list[Location]] = Future()
    future.set_result(locations)
    return future


def copied_items(pool: ShardPool, keys: Sequence[str], params: EncodeParams, weights: Weights) -> dict[str, Location]:
    """Items that lie in a shard of another format: the same latents, so copied instead of encoded."""
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
def frames_of(
    task: Task, encoder: Autoencoder, params: EncodeParams, device: torch.device, dtype: torch.dtype
) -> np.ndarray:
    """(frames, channels) latents of one clip, with silence behind it while encoding, in the storage precision."""
    audio_XA = np.empty(task.shape, dtype=np.float32)
    task.fill(audio_XA)
    audio_AX = torch.from_numpy(audio_XA).to(device, dtype).T
    generator = torch.Generator().manual_seed(int(task.key[:15], 16)) if params.encoder_noise else None
    return stored(task, encoder.encode_clip(audio_AX, token_noise=generator), params)


def stored(task: Task, latents_CT: Tensor, params: EncodeParams) -> np.ndarray:
    """(frames, channels) in the storage precision."""
    with np.errstate(over="ignore"):  # said below, by name
        frames_TC = latents_CT.T.to("cpu", torch.float32).numpy().astype(params.latent_dtype)
    return finite(task, np.ascontiguousarray(frames_TC), params)


def finite(task: Task, frames_TC: np.ndarray, params: EncodeParams) -> np.ndarray:
    """The latents as they are. Raises LatentsNotFinite."""
    if not np.isfinite(frames_TC).all():
        raise LatentsNotFinite(task.clip_id, params.compute_dtype, params.latent_dtype)
    return frames_TC


def shard_metadata(params: EncodeParams, weights: Weights) -> dict[str, str]:
    """What a stranger needs to read a shard of latents."""
    return {
        "layout": "frames, channels",
        "dtype": params.latent_dtype,
        "sample_rate_hz": str(weights.sizes.sample_rate_hz),
        "downsampling_ratio": str(weights.sizes.downsampling_ratio),
        "autoencoder": weights.digests["autoencoder"],
    }


@dataclass(frozen=True, kw_only=True)
class EncodedPrompts:
    """Where every prompt's hidden states lie, and how many were made now."""

    rows: list[PromptRow]
    num_encoded: int


def encoded_prompts(pool: ShardPool, texts: Iterable[str], weights: Weights, work: Workspace) -> EncodedPrompts:
    """Embed each prompt that the store does not hold yet; the text encoder is loaded only if there is one."""
    key_of = prompt_keys(weights)
    prompts = {key_of(prompt): prompt for prompt in dict.fromkeys(texts)}
    located = pool.locate(prompts)
    pending = [key for key in prompts if key not in located]
    if pending:
        work.say(f"embedding {len(pending)} prompt{'s' if len(pending) != 1 else ''}")
        encoder = load_text_encoder(weights, pick_device(work.resources.device))
        for group in shard_ranges([encoder.max_length * 4096] * len(pending)):
            if work.should_stop():
                raise Stopped("while embedding prompts")
            now = pending[group.start : group.stop]
            say_cut_prompts(encoder, [prompts[key] for key in now], work)
            hidden = encoder.hidden_states([prompts[key] for key in now])
            items = [(key, states.to("cpu", torch.float32).numpy()) for key, states in zip(now, hidden, strict=True)]
            metadata = {"layout": "tokens, width", "text_encoder": weights.digests["text_encoder"]}
            located.update({location.item_key: location for location in pool.write(items, metadata)})
    rows = [prompt_row(located[key], prompt) for key, prompt in prompts.items()]
    return EncodedPrompts(rows=rows, num_encoded=len(pending))


def say_cut_prompts(encoder: TextEncoder, prompts: Iterable[str], work: Workspace) -> None:
    """Name every prompt whose end the text encoder does not hear."""
    for prompt in prompts:
        if (num_tokens := encoder.num_tokens(prompt)) > encoder.max_length:
            work.say(f"only the first {encoder.max_length} of {num_tokens} tokens are heard of: {prompt!r}")


def prompt_row(location: Location, prompt: str) -> PromptRow:
    """One line of prompts.parquet."""
    return PromptRow(
        prompt_key=location.item_key,
        prompt=prompt,
        shard=location.shard,
        row=location.row,
        num_tokens=location.num_frames,
        checksum=location.checksum,
    )


def prompt_keys(weights: Weights) -> Callable[[str], str]:
    """Prompt text to its key, for this checkpoint's text encoder and tokenizer settings."""
    max_length = weights.sizes.max_prompt_tokens
    return lambda prompt: prompt_key(prompt, weights.digests["text_encoder"], max_length)


def encoded_row(clip: Clip, location: Location, prompt: str, weights: Weights) -> EncodedClip:
    """One line of manifest.parquet. Latents are stored of the valid length, so every stored frame is valid."""
    return EncodedClip(
        clip_id=clip.clip_id,
        item_key=location.item_key,
        prompt_key=prompt,
        shard=location.shard,
        row=location.row,
        num_frames=location.num_frames,
        num_valid_frames=location.num_frames,
        seconds_start=clip.crop_start // weights.sizes.sample_rate_hz,
        seconds_total=clip.seconds_total,
        prompt=clip.prompt,
        checksum=location.checksum,
    )


def _present(weights: Weights | None) -> Weights:
    assert weights is not None, "the runner hands encode its weights"
    return weights
