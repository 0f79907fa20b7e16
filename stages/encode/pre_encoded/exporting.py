"""Exports an encode artifact as a pre-encoded folder, which the reference's trainer can read.

C latent channels, T frames.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache.files.atomic_files import fsync_directory, fsync_file, write_failure
from cache.location import Location
from cache.manifest import read_rows
from cache.shard_pool import ShardPool
from stages.contract import Artifact
from stages.disk_space import SpaceNeed, check_space
from stages.encode.pre_encoded.folder import SILENCE
from stages.records import EncodedClip, ModelSpec

LONGEST_PERIOD = 16
"""Longest period, in frames, of the latents of silence: one chunk of the autoencoder's attention."""


def export_folder(
    artifact: Artifact, shared: Path, spec: ModelSpec, target: Path, say: Callable[[str], None]
) -> list[Path]:
    """Write `.npy` and `.json` per clip, in the artifact's order, and `silence.npy` of the model's native length.

    The folder appears whole or not at all. Times are of whole recordings, in whole seconds, as they are stored; `path`
    and `relpath` are the clip's name inside the dataset, and `load_time` is 0.

    Args:
        target: does not exist yet, or is empty.

    Returns:
        The files, sorted by name.

    Raises:
        InsufficientDiskSpace: the disk is too small.
        WriteFailed: the disk is full, or the folder is not empty or refuses.
        ItemNotFound, ShardDamaged: the store lacks latents of the artifact.
    """
    rows = read_rows(artifact.directory / "manifest.parquet", EncodedClip)
    check_space(
        "the export", [SpaceNeed(what="latents", folder=target, flag="--export", num_bytes=exported_bytes(rows, spec))]
    )
    aside = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, content in _files(artifact, rows, shared, spec, say):
            _write(aside / name, content)
        if target.is_dir():
            target.rmdir()  # fails unless empty; some systems rename onto no folder at all
        aside.rename(target)
        fsync_directory(target.parent)
    except OSError as error:
        raise write_failure(target, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return sorted(target.iterdir())


def _files(
    artifact: Artifact, rows: Sequence[EncodedClip], shared: Path, spec: ModelSpec, say: Callable[[str], None]
) -> Iterator[tuple[str, np.ndarray | dict[str, Any]]]:
    """(name, latents or metadata) of every file."""
    pool = ShardPool(shared / "latents", artifact.facts["latent_format"], say)
    if artifact.facts["latent_dtype"] != "float32":
        say(f"latents are stored as {artifact.facts['latent_dtype']}; the exported float32 files hold those values")
    for number, row in enumerate(rows):
        latents_CT = _latents(pool, row.location)
        yield f"{number:06d}0000.npy", latents_CT
        yield f"{number:06d}0000.json", metadata_of(row, spec)
    longest = max([spec.num_frames(spec.native_samples), *(row.num_frames for row in rows)])
    silence_CT = _latents(pool, Location.from_record(artifact.facts["silence"]))
    yield SILENCE, extended_silence(silence_CT, longest, say)[None]


def exported_bytes(rows: Sequence[EncodedClip], spec: ModelSpec) -> int:
    """Bytes of the values in the `.npy` files of the clips."""
    return 4 * spec.latent_channels * sum(row.num_frames for row in rows)


def _latents(pool: ShardPool, location: Location) -> np.ndarray:
    """(C, T) float32."""
    return np.ascontiguousarray(pool.read(location).T, dtype=np.float32)


def metadata_of(row: EncodedClip, spec: ModelSpec) -> dict[str, Any]:
    """The metadata that the reference's tool writes for a clip, in its order."""
    return {
        "path": row.clip_id,
        "relpath": row.clip_id,
        "timestamps": list(timestamps(row, spec)),
        "seconds_start": row.seconds_start,
        "seconds_total": row.seconds_total,
        "padding_mask": [1] * row.num_valid_frames + [0] * (row.num_frames - row.num_valid_frames),
        "sample_rate": spec.sample_rate_hz,
        "load_time": 0.0,
        "prompt": row.prompt,
    }


def timestamps(row: EncodedClip, spec: ModelSpec) -> tuple[float, float]:
    """Start and end of the clip as fractions of its recording's length; 0 and 1 for a whole recording."""
    length_seconds = row.num_valid_frames * spec.downsampling_ratio / spec.sample_rate_hz
    end_seconds = row.seconds_start + length_seconds
    # Lengths are known in whole seconds, rounded up.
    end = 1.0 if end_seconds > row.seconds_total - 1 else end_seconds / row.seconds_total
    return row.seconds_start / row.seconds_total, end


def extended_silence(silence_CT: np.ndarray, num_frames: int, say: Callable[[str], None]) -> np.ndarray:
    """(C, num_frames) latents of silence, extended by their period; as stored, and reported, where they have none.

    After a few frames the latents of silence are periodic: constant with windowed attention, of the period of a chunk
    with chunked attention.
    """
    stored = silence_CT.shape[1]
    found = period(silence_CT)
    if found is None and stored < num_frames:
        say(f"silence.npy has only the {stored} frames of the artifact: its latents of silence are not periodic")
        return silence_CT
    frames = np.arange(max(stored, num_frames))
    beyond = frames >= stored
    frames[beyond] = stored - (found or 1) + (frames[beyond] - stored) % (found or 1)
    return np.ascontiguousarray(silence_CT[:, frames])


def period(silence_CT: np.ndarray) -> int | None:
    """Period in frames of the second half of silence, within the storage precision; None if it is not periodic."""
    rounding = 2e-3 * float(np.abs(silence_CT).max())
    tail = silence_CT.shape[1] // 2
    for frames in range(1, min(LONGEST_PERIOD, tail) + 1):
        before = silence_CT[:, -tail - frames : -frames]
        if before.shape[1] == tail and np.abs(silence_CT[:, -tail:] - before).max() <= rounding:
            return frames
    return None


def _write(file: Path, content: np.ndarray | dict[str, Any]) -> None:
    if isinstance(content, np.ndarray):
        with file.open("wb") as stream:
            np.save(stream, content)
    else:
        file.write_text(json.dumps(content), encoding="utf-8")
    fsync_file(file)
