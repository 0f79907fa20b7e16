"""Checkpoints: adapter, optimiser state and metrics so far. Written atomically, and verified when read.

    checkpoints/step-00000500/tensors.safetensors   adapter.*, optimizer.*, history.* (as computed, not rounded)
    checkpoints/step-00000500/checkpoint.json       step, digest of the tensors, identity of the run, digest of
                                                    all this; written last

There is no random state: every draw is seeded by seed and step (`stages.train.rng`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from cache.checked_record import checked, with_check
from cache.files.atomic_files import atomic_write_bytes, fsync_directory
from cache.fingerprint import digest_bytes

FOLDER = "checkpoints"
FORMAT_VERSION = 3
_TENSORS, _RECORD = "tensors.safetensors", "checkpoint.json"
_UNFINISHED = ".writing"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a training after `step` updates."""

    step: int
    adapter: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    history: Mapping[str, Tensor]
    notes: Mapping[str, Any]
    """Small JSON values that must survive a stop, such as the losses before training."""


@dataclass(frozen=True, kw_only=True)
class _Record:
    """Content of checkpoint.json."""

    format_version: int
    identity: str
    step: int
    tensors: str
    notes: Mapping[str, Any]


class CheckpointUnusable(Exception):
    """This checkpoint cannot be used; the message says why. An earlier one may be usable."""


def write(folder: Path, identity: str, checkpoint: Checkpoint) -> Path:
    """Save as `folder`/step-N: written aside and flushed, then renamed. Returns its directory.

    Args:
        identity: fingerprint of the run; only the same run may resume from it.
    """
    final = directory_of(folder, checkpoint.step)
    aside = folder / f"{final.name}{_UNFINISHED}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors = save(_flat(checkpoint))
    atomic_write_bytes(aside / _TENSORS, tensors)
    record = _Record(
        format_version=FORMAT_VERSION,
        identity=identity,
        step=checkpoint.step,
        tensors=digest_bytes(tensors),
        notes=checkpoint.notes,
    )
    atomic_write_bytes(aside / _RECORD, json.dumps(with_check(asdict(record)), indent=1).encode())
    # There may be a checkpoint of this step, of a run that was stopped right after it, or a damaged one.
    shutil.rmtree(final, ignore_errors=True)
    aside.replace(final)
    fsync_directory(folder)
    return final


def directory_of(folder: Path, step: int) -> Path:
    """Directory of the checkpoint of a step."""
    return folder / f"step-{step:08d}"


def read(directory: Path, identity: str) -> Checkpoint:
    """Read one checkpoint and verify its digest.

    Raises:
        CheckpointUnusable: incomplete, damaged, of another format version or another run.
    """
    record = _record(directory / _RECORD)
    if record.identity != identity:
        raise CheckpointUnusable("belongs to another training")
    try:
        content = (directory / _TENSORS).read_bytes()
    except OSError as error:
        raise CheckpointUnusable(f"cannot be read ({error.strerror})") from error
    if digest_bytes(content) != record.tensors:
        raise CheckpointUnusable("is damaged: its tensors are not the ones that were saved")
    parts = _parts(load(content))
    return Checkpoint(step=record.step, notes=record.notes, **parts)


def newest(folders: list[Path], identity: str, max_steps: int, say: Callable[[str], None]) -> Checkpoint | None:
    """The usable checkpoint with the most steps, at most `max_steps`; others are named and skipped.

    Args:
        folders: folders that may hold checkpoints; earlier folders come first among equal steps.
    """
    for step, directory in _candidates(folders):
        if step > max_steps:
            say(f"checkpoint {directory.name} is beyond the {max_steps} steps requested; looking for an earlier one")
            continue
        try:
            return read(directory, identity)
        except CheckpointUnusable as why:
            say(f"checkpoint {directory.name} {why}; looking for an earlier one")
    return None


def newest_step(folders: list[Path], max_steps: int) -> int:
    """Step of the checkpoint that `newest` tries first, by its name alone; 0 where there is none."""
    return next((step for step, _ in _candidates(folders) if step <= max_steps), 0)


def keep_newest(folder: Path, count: int) -> None:
    """Delete all but the `count` checkpoints with the most steps, and remains of unfinished writes."""
    for _, directory in list(_candidates([folder]))[count:]:
        shutil.rmtree(directory)
    for directory in folder.glob(f"*{_UNFINISHED}"):
        shutil.rmtree(directory)


def keep_only(folder: Path, step: int) -> None:
    """Delete every checkpoint except that of one step."""
    for found, directory in list(_candidates([folder])):
        if found != step:
            shutil.rmtree(directory)
    keep_newest(folder, 1)


def _candidates(folders: list[Path]) -> Iterator[tuple[int, Path]]:
    """(step, directory), most steps first."""
    found = [
        (int(directory.name.removeprefix("step-")), -index, directory)
        for index, folder in enumerate(folders)
        for directory in folder.glob("step-*")
        if directory.name.removeprefix("step-").isdecimal()
    ]
    return ((step, directory) for step, _, directory in sorted(found, reverse=True))


def _record(file: Path) -> _Record:
    try:
        content = json.loads(file.read_bytes())
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointUnusable(f"is of format {version}, this program writes {FORMAT_VERSION}")
        return _Record(**checked(content))
    except OSError as error:
        raise CheckpointUnusable(f"cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointUnusable(f"is damaged: its record is not what was saved ({error})") from error


_PARTS = ("adapter", "optimizer", "history")


def _flat(checkpoint: Checkpoint) -> dict[str, Tensor]:
    parts = {part: getattr(checkpoint, part) for part in _PARTS}
    return {f"{part}.{name}": tensor.contiguous() for part, held in parts.items() for name, tensor in held.items()}


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    return {
        part: {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}
        for part in _PARTS
    }
