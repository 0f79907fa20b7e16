"""Imports a folder of the reference's pre-encoding tool as an artifact of encode.

Such a folder does not say which autoencoder made it, and two autoencoders may have the same number of channels. It does
hold that autoencoder's encoding of silence, which is compared with ours: a folder whose silence differs too much is
refused. One without silence gets ours, and what cannot be checked is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cache.location import Location
from cache.manifest import write_rows
from cache.shard_pool import ShardPool
from stages.contract import Inputs, Outcome, Weights, Workspace
from stages.encode.encode_latents import check_latents_fit, encode_latents, silence_task, write_shards
from stages.encode.facts import facts
from stages.encode.pre_encoded.folder import SILENCE, FileRejected, Folder, FolderClip, Shape, digest_of, read_folder
from stages.encode.prompts import embed_prompts, prompt_keys
from stages.encode.stage import SILENCE_FRAMES, EncodeParams, ImportParams, imported_key
from stages.errors import DatasetFaults, Fault
from stages.models.device import set_threads
from stages.records import EncodedClip, PromptRow

MAX_SILENCE_DIFFERENCE = 0.5
"""Relative difference of silence above which latents are refused. Measured on small networks: 0.002 by new-token noise,
0.004 by a short silence.npy that ends at its last frame, 0.008 by bf16 arithmetic; above 1 by other weights."""


@dataclass(frozen=True, kw_only=True)
class ImportTask:
    """One clip, or silence, to be written to a shard."""

    key: str
    clip_id: str
    num_frames: int
    frames: Callable[[], np.ndarray]
    """(T, C) float32. Raises: FileRejected."""
    is_clip: bool = True


def import_folder(inputs: Inputs, params: ImportParams, work: Workspace) -> Outcome:
    """Store the latents of a pre-encoded folder, encode its prompts, and list both in a manifest.

    Latents are keyed by their values: the same latents in two folders are stored once.

    Raises:
        DatasetFaults: every fault of every file of the folder.
        Stopped: a stop was requested, between two clips.
    """
    set_threads(work.resources.threads)
    source, weights = inputs.source, inputs.weights
    assert source is not None and weights is not None, "an import is planned with a folder and weights"
    folder = read_folder(source, expected_shape(weights, params))
    if not folder.clips:
        raise DatasetFaults(all_faults(folder, params, None), skippable=False)
    ours_TC = our_silence(params, weights, work)
    difference = silence_difference(folder, ours_TC, params, work)
    silence_TC = checked_silence(folder, ours_TC, params, difference)
    for note in [*(f"left out: {one.member}: {one.msg}" for one in folder.faults), *folder.notes]:
        work.say(note)
    silence, *clips = import_tasks(folder, silence_TC, params)
    located = store_latents([silence, *clips], params, weights, work)
    pool = ShardPool(work.shared / "prompts", params.latent_format, work.say)
    prompts = embed_prompts(pool, (clip.prompt for clip in folder.clips), weights, work)
    key_of = prompt_keys(weights)
    locations = [located[task.key] for task in clips]
    rows = [manifest_row(clip, where, key_of(clip.prompt)) for clip, where in zip(folder.clips, locations, strict=True)]
    write_rows(work.directory / "manifest.parquet", rows, EncodedClip)
    write_rows(work.directory / "prompts.parquet", prompts.rows, PromptRow)
    read = window_facts(rows, params, weights) | {"num_clips": len(rows), "dataset": source.fingerprint}
    made = facts(params, read, rows, located[silence.key], set(), prompts.num_encoded, weights)
    return Outcome(facts=made | {"origin": origin(source.fingerprint, folder, difference, weights)})


def expected_shape(weights: Weights, params: ImportParams) -> Shape:
    """The shape that latents of this model have."""
    rate = weights.sizes.sample_rate_hz
    return Shape(
        model=params.model,
        channels=weights.sizes.latent_channels,
        sample_rate_hz=rate,
        downsampling_ratio=weights.sizes.downsampling_ratio,
        dtype=params.latent_dtype,
    )


def checked_silence(folder: Folder, ours_TC: np.ndarray, params: ImportParams, difference: float | None) -> np.ndarray:
    """The folder's silence, else ours, (T, C), after checking that there are only faults that --skip-bad leaves out.

    Raises:
        DatasetFaults: all faults.
    """
    found = all_faults(folder, params, difference)
    unskippable = [fault for fault in found if fault.member in ("", SILENCE)]
    if unskippable or (found and not params.skip_bad):
        raise DatasetFaults(found, skippable=not unskippable and bool(folder.clips) and not params.skip_bad)
    return ours_TC if folder.silence_TC is None else folder.silence_TC


def all_faults(folder: Folder, params: ImportParams, difference: float | None) -> list[Fault]:
    """Faults of the folder as a whole, with an empty member, and then of its files."""
    of_folder = [Fault(member="", type=type, msg=msg) for type, msg in _folder_faults(folder, params, difference)]
    return of_folder + folder.faults


def _folder_faults(folder: Folder, params: ImportParams, difference: float | None) -> list[tuple[str, str]]:
    """(type, message) of each fault of the folder as a whole."""
    found = []
    of_clips = [fault for fault in folder.faults if fault.member != SILENCE]
    if not folder.clips and not of_clips:
        found.append(
            ("too_few_clips", "it contains no .npy of a clip; give the folder that the pre-encoding tool wrote")
        )
    elif not folder.clips and params.skip_bad:
        found.append(("too_few_clips", "none of its clips can be used"))
    if len(folder.clips) > params.max_clips:
        found.append(
            ("too_many_clips", f"it contains {len(folder.clips)} clips; raise --max-clips ({params.max_clips})")
        )
    if difference is not None and difference > MAX_SILENCE_DIFFERENCE:
        said = f"its silence differs from that of {params.model} by {difference:.0%}, so another autoencoder made it"
        found.append(("autoencoder_differs", f"{said}. Choose the model it was made for, or encode the clips again"))
    return found


def our_silence(params: ImportParams, weights: Weights, work: Workspace) -> np.ndarray:
    """This model's encoding of silence, (T, C) float32."""
    alike = EncodeParams(model=params.model, latent_format=params.latent_format, latent_dtype="float32")
    task, pool = silence_task(alike, weights), ShardPool(work.shared / "latents", params.latent_format, work.say)
    located, _ = encode_latents(pool, [task], alike, weights, work)
    return np.asarray(pool.read(located[task.key], 0, SILENCE_FRAMES), dtype=np.float32)


def silence_difference(folder: Folder, ours_TC: np.ndarray, params: ImportParams, work: Workspace) -> float | None:
    """Norm of (their silence - ours) relative to ours, over the frames both have; None without their silence."""
    if folder.silence_TC is None:
        work.say(
            f"the folder has no usable {SILENCE}: only silence of {params.model} can be used; whether its autoencoder "
            "made the latents cannot be checked"
        )
        return None
    num_frames = min(SILENCE_FRAMES, len(folder.silence_TC))
    wanted_TC = ours_TC[:num_frames].astype(np.float64)
    difference = float(np.linalg.norm(folder.silence_TC[:num_frames] - wanted_TC) / np.linalg.norm(wanted_TC))
    work.say(
        f"the folder does not say which autoencoder made it; its silence differs from that of {params.model} by "
        f"{difference:.2%}"
    )
    return difference


def import_tasks(folder: Folder, silence_TC: np.ndarray, params: ImportParams) -> list[ImportTask]:
    """The tasks of silence and then of every clip."""

    def task(clip_id: str, digest: str, num_frames: int, frames: Callable[[], np.ndarray]) -> ImportTask:
        key = imported_key(digest, params.latent_dtype)
        return ImportTask(key=key, clip_id=clip_id, num_frames=num_frames, frames=frames)

    silence = task("silence", digest_of(silence_TC), len(silence_TC), lambda: silence_TC)
    return [
        replace(silence, is_clip=False),
        *(task(clip.clip_id, clip.digest, clip.num_frames, clip.frames) for clip in folder.clips),
    ]


def store_latents(
    tasks: Sequence[ImportTask], params: ImportParams, weights: Weights, work: Workspace
) -> dict[str, Location]:
    """Write the latents that the store does not hold; return the location of every task's latents."""
    pool = ShardPool(work.shared / "latents", params.latent_format, work.say)
    located = pool.locate(task.key for task in tasks)
    pending = list({task.key: task for task in tasks if task.key not in located}.values())
    dtype = np.dtype(params.latent_dtype)
    sizes = [task.num_frames * weights.sizes.latent_channels * dtype.itemsize for task in pending]
    check_latents_fit(pool, sum(sizes), 4 * sum(sizes) // dtype.itemsize, work)

    def frames(task: ImportTask) -> np.ndarray:
        try:
            return task.frames().astype(dtype)
        except FileRejected as rejection:
            raise DatasetFaults([Fault(member=task.clip_id, type=rejection.type, msg=rejection.msg)]) from rejection

    return located | write_shards(pool, pending, sizes, frames, shard_metadata(params, weights), work)


def shard_metadata(params: ImportParams, weights: Weights) -> dict[str, str]:
    """Metadata of a shard of imported latents, enough to read them without the store."""
    return {
        "layout": "frames, channels",
        "dtype": params.latent_dtype,
        "sample_rate_hz": str(weights.sizes.sample_rate_hz),
        "downsampling_ratio": str(weights.sizes.downsampling_ratio),
        "autoencoder": "not known: imported",
    }


def manifest_row(clip: FolderClip, location: Location, prompt_key: str) -> EncodedClip:
    """A clip's row of manifest.parquet."""
    return EncodedClip(
        clip_id=clip.clip_id,
        item_key=location.item_key,
        prompt_key=prompt_key,
        shard=location.shard,
        row=location.row,
        num_frames=location.num_frames,
        num_valid_frames=location.num_frames,
        seconds_start=clip.seconds_start,
        seconds_total=clip.seconds_total,
        prompt=clip.prompt,
        checksum=location.checksum,
    )


def window_facts(rows: Sequence[EncodedClip], params: ImportParams, weights: Weights) -> dict[str, Any]:
    """Facts about the window: the duration asked for, else the longest clip; at most the model's native length."""
    rate = weights.sizes.sample_rate_hz
    ratio = weights.sizes.downsampling_ratio
    seconds, longest = params.duration_seconds, max(row.num_frames for row in rows) * ratio
    wanted = longest if seconds is None else round(seconds * rate)
    num_samples = max(ratio, min(wanted, params.native_samples))
    return {
        "window_samples": num_samples,
        "window_frames": -(-num_samples // ratio),
        "duration_seconds": num_samples / rate,
        "total_seconds": sum(row.num_frames for row in rows) * ratio / rate,
    }


def origin(fingerprint: str, folder: Folder, difference: float | None, weights: Weights) -> Mapping[str, Any]:
    """The origin of the latents, for the receipt."""
    return {
        "kind": "pre-encoded folder",
        "source": fingerprint,
        "num_imported": len(folder.clips),
        "autoencoder": "not known",
        "compared_with_autoencoder": weights.digests["autoencoder"],
        "silence_difference": difference,
        "skipped": [{"member": one.member, "type": one.type, "msg": one.msg} for one in folder.faults],
        "notes": list(folder.notes),
    }
