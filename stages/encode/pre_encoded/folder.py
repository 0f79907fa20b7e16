"""Reads a folder written by the reference's pre-encoding tool, and finds every fault of every file.

    0000000000.npy    (channels, frames) latents of a clip, float32: batch number in six digits, then item in four
    0000000000.json   its prompt, lengths and padding mask
    silence.npy       (1, channels, frames) latents of silence

C latent channels, T frames.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cache.fingerprint import digest_bytes
from stages.contract import Member, Source
from stages.errors import Fault
from stages.plural import pluralized
from stages.text import control_character, has_visible, is_lfs_pointer

SILENCE = "silence.npy"
FIELDS = (
    *("path", "relpath", "timestamps", "seconds_start", "seconds_total"),
    *("padding_mask", "sample_rate", "load_time", "prompt"),
)
"""Metadata that the tool writes for a clip, in its order."""
READ = ("relpath", "seconds_start", "seconds_total", "padding_mask", "sample_rate", "prompt")
"""The fields that are read; the others say where the file was and how long loading took."""
NOT_DERIVABLE = ("prompt",)
"""Those of them that nothing else in the folder tells."""
_NUMBERED = re.compile(r"\d{10}")
"""Names that the tool gives the files of a clip."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The form that latents of one model must have."""

    model: str
    channels: int
    sample_rate_hz: int
    downsampling_ratio: int
    dtype: str
    """Storage precision, in which they must be finite."""


@dataclass(frozen=True, kw_only=True)
class FolderClip:
    """One clip of the folder; its latents are read when `frames` is called."""

    clip_id: str
    """The `relpath` in its metadata; with `#2` and so on where several clips have the same."""
    file: Path
    member: Member
    digest: str
    """Digest of the shape and float32 values of the valid frames."""
    num_frames: int
    """Valid frames."""
    num_padding_frames: int
    seconds_start: int
    seconds_total: int
    prompt: str

    def frames(self) -> np.ndarray:
        """(T, C) float32, contiguous, the valid frames only.

        Raises:
            FileRejected: the file has changed since the folder was read.
        """
        frames_TC = _valid(_array(_content(self.file, self.member)), self.num_frames)
        if digest_of(frames_TC) != self.digest:
            raise FileRejected("file_changed", "it changed while the folder was read; run again")
        return frames_TC


@dataclass(kw_only=True)
class Folder:
    """The content of a pre-encoded folder."""

    clips: list[FolderClip] = field(default_factory=list)
    silence_TC: np.ndarray | None = None
    """(T, C) float32."""
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Notes for the user about the clips that are used."""


class FileRejected(Exception):
    """Raised by a check that finds a fault in one file or one field of its metadata."""

    def __init__(self, type: str, msg: str) -> None:
        super().__init__(msg)
        self.type, self.msg = type, msg


def read_folder(source: Source, shape: Shape) -> Folder:
    """Read and check every file of a folder, all of its values included."""
    members = {member.name: member for member in source.members}
    arrays = [name for name in members if name.endswith(".npy") and PurePosixPath(name).name != SILENCE]
    stems = [name.removesuffix(".npy") for name in arrays]
    found = Folder()
    fields: Counter[str] = Counter()
    derived: Counter[str] = Counter()
    for stem in stems:
        try:
            found.clips.append(_clip(source.path, members, stem, shape, fields, derived))
        except FileRejected as rejection:
            found.faults.append(Fault(member=f"{stem}.npy", type=rejection.type, msg=rejection.msg))
    found.faults += _missing_latents(members, stems)
    try:
        found.silence_TC = _silence(source.path, members, shape) if SILENCE in members else None
    except FileRejected as rejection:
        remedy = f"remove it to use the silence of {shape.model}, or write it again"
        found.faults.append(Fault(member=SILENCE, type=rejection.type, msg=f"{rejection.msg}; {remedy}"))
    found.clips = _with_unique_names(found.clips)
    found.notes = [f"{what}: {pluralized(number, 'clip')}" for what, number in derived.items()]
    found.notes += _notes(members, stems, found.clips, fields)
    return found


def digest_of(frames_TC: np.ndarray) -> str:
    """`sha256:...` of shape and values, independent of the file they came from."""
    stored = np.ascontiguousarray(frames_TC, dtype="<f4")
    total = hashlib.sha256(json.dumps(stored.shape).encode())
    total.update(stored.data)
    return f"sha256:{total.hexdigest()}"


def _clip(
    root: Path,
    members: Mapping[str, Member],
    stem: str,
    shape: Shape,
    fields: Counter[str],
    derived: Counter[str],
) -> FolderClip:
    about = _metadata(root, members, f"{stem}.json")
    fields.update(about.keys() - set(FIELDS))
    member = members[f"{stem}.npy"]
    latents_CT = _array(_content(root / member.name, member))
    facts = _checked(_completed(about, stem, latents_CT.shape[-1:], shape, derived), shape)
    num_valid = _num_valid(facts["padding_mask"])
    _check_latents(latents_CT, len(facts["padding_mask"]), shape)
    return FolderClip(
        clip_id=facts["relpath"],
        file=root / member.name,
        member=member,
        digest=digest_of(_valid(latents_CT, num_valid)),
        num_frames=num_valid,
        num_padding_frames=latents_CT.shape[1] - num_valid,
        # As the tool rounds them.
        seconds_start=math.floor(facts["seconds_start"]),
        seconds_total=math.ceil(facts["seconds_total"]),
        prompt=facts["prompt"].strip(),
    )


def _metadata(root: Path, members: Mapping[str, Member], name: str) -> dict[str, Any]:
    if name not in members:
        raise FileRejected("metadata_missing", f"{name} is missing; encode this clip again, or remove its .npy")
    try:
        about = json.loads(_content(root / name, members[name]))
    except (ValueError, RecursionError) as error:
        raise FileRejected("metadata_unreadable", f"{name} is not JSON ({error})") from error
    if not isinstance(about, dict):
        raise FileRejected("metadata_unreadable", f"{name} does not contain a JSON object")
    return about


def _completed(
    about: Mapping[str, Any], stem: str, num_frames: Sequence[int], shape: Shape, derived: Counter[str]
) -> Mapping[str, Any]:
    """The metadata with what the folder tells otherwise in place of fields that are missing; these are counted."""
    given = {name: value for name, value in about.items() if value is not None}
    mask = given.get("padding_mask", [1] * sum(num_frames))
    num_valid = _num_valid(mask) if isinstance(mask, list) else 0
    seconds = math.ceil(num_valid * shape.downsampling_ratio / shape.sample_rate_hz)
    otherwise = {
        "relpath": (PurePosixPath(str(given.get("path") or f"{stem}.npy")).name, "the file's name is taken"),
        "padding_mask": (mask, "all frames are taken to be sound"),
        "sample_rate": (shape.sample_rate_hz, f"{shape.sample_rate_hz} is taken, the rate of {shape.model}"),
        "seconds_start": (0, "0 is taken"),
        "seconds_total": (seconds, "the length of the latents is taken"),
    }
    derived.update(f"no {name}, {what}" for name, (_, what) in otherwise.items() if name not in given)
    for name in ("seconds_start", "seconds_total"):
        if _is_number(given.get(name)) and not float(given[name]).is_integer():
            derived[f"fractions in {name}, rounded as the tool rounds"] += 1
    return {name: value for name, (value, _) in otherwise.items()} | given


def _checked(about: Mapping[str, Any], shape: Shape) -> Mapping[str, Any]:
    """The metadata, after checking that every field that is read is there and valid."""
    missing = [name for name in NOT_DERIVABLE if name not in about]
    if missing:
        raise FileRejected("field_missing", f"its metadata lacks {', '.join(missing)}")
    mask, prompt, rate = about["padding_mask"], about["prompt"], about["sample_rate"]
    rules = [
        ("relpath", _is_plain_text(about["relpath"]), "a file name"),
        ("prompt", _is_plain_text(prompt), "plain text, some of it visible"),
        ("seconds_start", _is_number(about["seconds_start"]) and about["seconds_start"] >= 0, "a number from 0"),
        ("seconds_total", _is_number(about["seconds_total"]) and about["seconds_total"] > 0, "a number above 0"),
        ("sample_rate", rate == shape.sample_rate_hz, f"{shape.sample_rate_hz}, the sample rate of {shape.model}"),
        ("padding_mask", _is_prefix(mask), "a list of one or more ones followed by zeros"),
    ]
    wrong = [f"its {name} must be {rule}; it is {_shown(about[name])}" for name, holds, rule in rules if not holds]
    if wrong:
        raise FileRejected("field_invalid", "; ".join(wrong))
    return about


def _is_plain_text(value: object) -> bool:
    return isinstance(value, str) and has_visible(value) and control_character(value) is None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_prefix(mask: object) -> bool:
    if not isinstance(mask, list) or not all(value in (0, 1) for value in mask):
        return False
    num_valid = _num_valid(mask)
    return num_valid > 0 and not any(mask[num_valid:])


def _num_valid(mask: Sequence[int]) -> int:
    """Frames before the first zero."""
    return next((index for index, value in enumerate(mask) if not value), len(mask))


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _silence(root: Path, members: Mapping[str, Member], shape: Shape) -> np.ndarray:
    latents_1CT = _array(_content(root / SILENCE, members[SILENCE]))
    if latents_1CT.ndim != 3 or latents_1CT.shape[0] != 1 or latents_1CT.shape[2] == 0:
        raise FileRejected("latents_misshapen", f"it is {latents_1CT.shape}, not (1, {shape.channels}, frames)")
    _check_latents(latents_1CT[0], latents_1CT.shape[2], shape)
    return _valid(latents_1CT[0], latents_1CT.shape[2])


def _content(file: Path, member: Member) -> bytes:
    """The bytes of a file, whose digest is the one in the folder's fingerprint."""
    if member.fault is not None:
        type, _, msg = member.fault.partition(": ")
        raise FileRejected(type, msg or type)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise FileRejected("file_unreadable", f"{file.name} cannot be read ({error.strerror})") from error
    if is_lfs_pointer(content):
        raise FileRejected(
            "lfs_pointer", f"{file.name} is a Git LFS pointer: fetch the file itself with `git lfs pull`"
        )
    if digest_bytes(content) != member.digest:
        raise FileRejected("file_changed", f"{file.name} changed while the folder was read; run again")
    return content


def _array(content: bytes) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FileRejected("latents_unreadable", f"it is not a complete .npy array of numbers ({error})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise FileRejected("latents_unreadable", "it does not contain an array of floating point numbers")
    return array


def _check_latents(latents_CT: np.ndarray, num_frames: int, shape: Shape) -> None:
    if latents_CT.ndim != 2 or latents_CT.shape[0] != shape.channels:
        wanted = f"({shape.channels}, frames) as for {shape.model}"
        raise FileRejected("latents_misshapen", f"it is {latents_CT.shape}, not {wanted}")
    if latents_CT.shape[1] != num_frames or num_frames == 0:
        raise FileRejected("mask_misshapen", f"it has {latents_CT.shape[1]} frames, its padding_mask {num_frames}")
    if not np.isfinite(latents_CT).all():
        raise FileRejected("latents_not_finite", "it contains NaN or infinity")
    if np.abs(latents_CT).max() > np.finfo(shape.dtype).max:
        raise FileRejected(
            "latents_too_large", f"it contains values beyond the range of {shape.dtype}; use --latent-dtype float32"
        )


def _valid(latents_CT: np.ndarray, num_frames: int) -> np.ndarray:
    """The first frames as (T, C) float32, contiguous."""
    return np.ascontiguousarray(latents_CT[:, :num_frames].T, dtype=np.float32)


def _missing_latents(members: Iterable[str], stems: Sequence[str]) -> Iterator[Fault]:
    for name in _unpaired_metadata(members, stems):
        if _NUMBERED.fullmatch(PurePosixPath(name).stem):
            missing = f"{PurePosixPath(name).stem}.npy is missing; encode this clip again, or remove its .json"
            yield Fault(member=name, type="latents_missing", msg=missing)


def _with_unique_names(clips: Sequence[FolderClip]) -> list[FolderClip]:
    """The clips with unique names: those of one file, such as two crops of it, are numbered in the folder's order."""
    taken: set[str] = set()
    named = []
    for clip in clips:
        names = (f"{clip.clip_id}#{number}" if number > 1 else clip.clip_id for number in count(1))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        named.append(replace(clip, clip_id=name))
    return named


def _unpaired_metadata(members: Iterable[str], stems: Sequence[str]) -> list[str]:
    return [name for name in members if name.endswith(".json") and name.removesuffix(".json") not in set(stems)]


def _notes(
    members: Iterable[str], stems: Sequence[str], clips: Sequence[FolderClip], fields: Mapping[str, int]
) -> Iterator[str]:
    alone = [name for name in _unpaired_metadata(members, stems) if not _NUMBERED.fullmatch(PurePosixPath(name).stem)]
    others = sorted([name for name in members if not name.endswith((".npy", ".json"))] + alone)
    if others:
        yield f"not read: {_listed(others)}"
    if fields:
        yield f"metadata that is ignored: {_listed(sorted(fields))}"
    padded = [clip.clip_id for clip in clips if clip.num_padding_frames]
    if padded:
        total = sum(clip.num_padding_frames for clip in clips)
        left_out = f"{pluralized(total, 'frame')} of padding left out"
        yield f"{left_out}, after {pluralized(len(padded), 'clip')}: {_listed(padded)}"


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
