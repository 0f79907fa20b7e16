"""Errors of the stages. Light: standard library only.

StageError
├── Stopped                  asked to stop (Ctrl-C, SIGTERM); finished work is kept
├── PackageMissing           an option needs an optional package that is not installed
│ dataset
├── SourceUnreadable         the dataset is neither a readable zip nor a folder
├── DatasetFaults            problems of clips and captions, all of them at once
├── StyleClipsUnusable       clips that generated sounds should be compared with
├── InsufficientDiskSpace    the disk cannot hold what a stage is about to write
├── EngineUnavailable        the requested joblib backend cannot be started
├── PreparedAudioMissing     a clip's prepared audio is missing or damaged
├── LatentsNotFinite         the autoencoder returned NaN or infinity
│ base model
├── WeightsNotFound          no usable checkpoint folder
├── WeightsMismatch          tensors of a weight file and of its network differ
├── UnsupportedModelConfig   a model_config.json asks for something that is not implemented
│ adapter
├── AdapterMismatch          an adapter file does not fit the base model or the requested settings
├── AdapterNotWritable       trained values that the file's precision cannot represent
├── InvalidAdapterState      stacked adapters were merged out of order, or used after they were detached
├── SingularVectorsDamaged   a file of cached singular vectors cannot be read
├── FilterMatchesNothing     an include/exclude pattern matches no module
├── LayerNotAdaptable        a targeted layer that cannot carry an adapter
├── RankTooLarge             a rank above the limit of the targeted layers
│ training
├── DeviceNotFound           the requested device is not available
├── LossNotFinite            training met NaN or infinity
├── InsufficientMemory       by its estimate a training does not fit into the device's memory
└── OutOfMemory              loading or evaluating ran out of the device's memory
    └── StepOutOfMemory      a training step did
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cache.errors import verify_command
from stages.plural import pluralized, size


class StageError(Exception):
    """Base of all errors of the stages. The message says what happened, why, and what to type next."""

    code: ClassVar[str]
    """`type` of the error in JSON documents, where it differs from the name of the class: programs match on it."""


class Stopped(StageError):
    """The run was asked to stop. Finished work is kept, and the same command continues from there."""

    signal_number: int | None = None
    """The signal that asked for it, if one did."""

    def __init__(self, where: str) -> None:
        super().__init__(f"stopped {where}; run the same command again to continue from there")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A problem of one file of the dataset."""

    member: str
    """Path inside the zip or folder, with forward slashes; empty for a problem of the whole dataset."""
    type: str
    """Stable name, such as `missing_caption`: programs match on it."""
    msg: str
    """What is wrong and what to do about it, one sentence each."""

    @property
    def shared_msg(self) -> str:
        """The message with NAME for the file's name without its suffix: the same for each file with this problem."""
        stem = self.member.rpartition(".")[0]
        return re.sub(rf"(?<![\w.]){re.escape(stem)}\.(?=\w)", "NAME.", self.msg) if stem else self.msg

    def as_json(self) -> dict[str, object]:
        """The entry in the hosted trainer's error format: loc, type, msg."""
        place = ["body", "audio_data_url", *filter(None, [self.member])]
        return {"loc": place, "type": self.type, "msg": self.msg}


class DatasetFaults(StageError):
    """The dataset has problems. Holds every problem of every file."""

    def __init__(self, faults: Sequence[Fault], *, skippable: bool = True) -> None:
        """`skippable`: whether leaving out the clips that have faults would leave a dataset without any."""
        self.faults = tuple(faults)
        other_way = ", or continue without these clips with --skip-bad" if skippable else ""
        count = pluralized(len(self.faults), "problem")
        super().__init__(
            "\n".join([f"the dataset has {count}, and is not used:", *_grouped(self.faults)])
            + f"\nFix the files and run again{other_way}."
        )


_MOST_LISTED = 8
_CAPTIONS_BY_REQUEST = (
    '    One caption for all: --caption "TEXT". Their names as captions: --caption-template "{filename}".'
)


def _grouped(faults: Sequence[Fault]) -> list[str]:
    """One line for each problem, and for the same one of several files; `--json` lists each of them."""
    groups: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        groups.setdefault((fault.type, fault.shared_msg), []).append(fault)
    lines = []
    for (type, shared), alike in groups.items():
        if len(alike) == 1:
            lines.append(f"  {alike[0].member or '(dataset)'}  {type}: {alike[0].msg}")
            continue
        shown = ", ".join(one.member for one in alike[:_MOST_LISTED])
        more = f" and {len(alike) - _MOST_LISTED:,} more" if len(alike) > _MOST_LISTED else ""
        lines += [f"  {len(alike):,} files  {type}: {shared}", f"    {shown}{more}"]
        lines += [_CAPTIONS_BY_REQUEST] if type == "missing_caption" else []
    return lines


class SourceUnreadable(StageError):
    """The dataset is neither a readable zip nor a folder."""

    def __init__(self, path: Path, why: str, remedy: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{path} cannot be read as a dataset: {why}. {remedy}")

    def as_json(self) -> dict[str, object]:
        """The entry in the hosted trainer's error format."""
        return {"loc": ["body", "audio_data_url"], "type": "invalid_archive", "msg": str(self)}


class StyleClipsUnusable(StageError):
    """Clips that generated sounds should be compared with cannot be used: every problem of theirs."""

    def __init__(self, where: Path, faults: Sequence[Fault]) -> None:
        lines = "".join(f"\n  {fault.member or '(all)'}: {fault.msg}" for fault in faults)
        super().__init__(f"--like {where}: {pluralized(len(faults), 'problem')}; nothing was generated:{lines}")


class InsufficientDiskSpace(StageError):
    """The disk cannot hold what a stage is about to write; nothing of it was written."""

    code = "SpaceShort"

    def __init__(
        self, task: str, parts: Sequence[tuple[str, int]], where: Path, flag: str, free_bytes: int, remedy: str = ""
    ) -> None:
        """`flag` names another place for `where`; `remedy` is a further way out, as a part of a sentence."""
        needed = sum(num_bytes for _, num_bytes in parts)
        listed = ", ".join(f"{name} {size(num_bytes)}" for name, num_bytes in parts)
        ways = ["Free some space there", f"choose another folder with {flag}", *([remedy] if remedy else [])]
        super().__init__(
            f"{task} needs at least {size(needed)} in {where} ({listed}), and {size(free_bytes)} "
            f"are free there. It was not begun; finished work is kept. {', or '.join(ways)}; "
            "then run the same command again."
        )


class EngineUnavailable(StageError):
    """The requested joblib backend cannot be started."""

    def __init__(self, engine: str, why: str, remedy: str) -> None:
        super().__init__(f"--engine {engine} cannot be used: {why}. {remedy}, or leave --engine out.")


class PackageMissing(StageError):
    """An option needs an optional package that is not installed."""

    def __init__(self, what: str, package: str) -> None:
        super().__init__(
            f"{what} needs the package {package}. Install it with `pip install {package}`, or leave the option out."
        )


class PreparedAudioMissing(StageError):
    """A clip's prepared audio is missing or damaged; ingest makes it again."""

    code = "PreparedMissing"

    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        super().__init__(
            f"the prepared audio {path} {why}. "
            f"Run `{verify_command(path, 3)}`, then the same command again: only what is damaged is made again."
        )


class WeightsMismatch(StageError):
    """Tensors of a weight file and of its network differ. Lists every one of them."""

    code = "CheckpointMismatch"

    def __init__(
        self, where: str, *, missing: Sequence[str] = (), extra: Sequence[str] = (), misshapen: Sequence[str] = ()
    ) -> None:
        self.missing, self.extra, self.misshapen = tuple(missing), tuple(extra), tuple(misshapen)
        parts = [
            f"{len(names)} {what}:\n" + "\n".join(f"    {name}" for name in names)
            for what, names in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
            if names
        ]
        super().__init__(
            f"{where} does not match its model_config.json; nothing was loaded.\n  "
            + "\n  ".join(parts)
            + "\nCheck that --weights points at the folder of the model you asked for, and download it again."
        )


class UnsupportedModelConfig(StageError):
    """A model_config.json asks for something that is not implemented, so the network would compute something else."""

    code = "NetworkNotSupported"

    def __init__(self, where: str, what: str) -> None:
        super().__init__(
            f"the {where} section of model_config.json: {what}. "
            "Use one of the base models this version knows (sa3-trainer --help lists them), or correct the config."
        )


class WeightsNotFound(StageError):
    """There is no usable checkpoint folder."""

    def __init__(self, where: str, why: str, remedy: str) -> None:
        super().__init__(f"no weights at {where}: {why}. {remedy}")


class AdapterMismatch(StageError):
    """An adapter file does not fit the base model or the requested settings. Lists every difference."""

    def __init__(self, file: str, differences: Sequence[str], *, generating: bool = False) -> None:
        self.file, self.differences = file, tuple(differences)
        purpose, remedy = ("model", _TO_HEAR) if generating else ("training", _TO_TRAIN)
        super().__init__("\n    ".join([f"{file} does not fit this {purpose}:", *differences]) + f"\n{remedy}")


_TO_TRAIN = "Train with the adapter's own model, adapter_type, rank, include and exclude, or start without it."
_TO_HEAR = "Give --adapter the .safetensors file of an adapter, and --model the model that it was trained for."


class AdapterNotWritable(StageError):
    """Adapter tensors have values that the file's precision cannot represent; nothing was written."""

    def __init__(
        self, file: str, precision: str, *, not_finite: Sequence[str] = (), too_large: Sequence[str] = ()
    ) -> None:
        self.not_finite, self.too_large = tuple(not_finite), tuple(too_large)
        parts = [
            f"{len(names)} {what}:\n" + "\n".join(f"    {name}" for name in names)
            for what, names in (("not finite", not_finite), (f"beyond the range of {precision}", too_large))
            if names
        ]
        remedy = (
            "Training diverged: go back to an earlier checkpoint and lower --learning-rate."
            if not_finite
            else "Export with --export-precision fp32, or lower --learning-rate."
        )
        super().__init__(f"{file} was not written. Of its tensors\n  " + "\n  ".join(parts) + f"\n{remedy}")


class InvalidAdapterState(StageError):
    """Stacked adapters were merged out of order, or used after they were detached."""

    code = "AdapterOrder"

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}. {remedy}")


class SingularVectorsDamaged(StageError):
    """A file of cached singular vectors cannot be read."""

    code = "BasesDamaged"

    def __init__(self, file: str, why: str) -> None:
        super().__init__(
            f"{file} does not hold the expected singular vectors ({why}). "
            "Delete this file and run again: it is recomputed."
        )


class FilterMatchesNothing(StageError):
    """An include/exclude pattern matches no module of the model."""

    def __init__(self, field: str, patterns: Sequence[str], near: Sequence[str]) -> None:
        self.field = field
        shown = ", ".join(repr(pattern) for pattern in patterns) or "the empty list"
        names = "\n".join(f"    {name}" for name in near)
        super().__init__(
            f"{field}: {shown} matches no module. Patterns are plain substrings with [a-b] ranges. Near names:\n{names}"
        )


class LayerNotAdaptable(StageError):
    """A targeted layer cannot carry an adapter."""

    def __init__(self, layer: str, why: str) -> None:
        super().__init__(
            f"{layer} cannot carry an adapter: {why}. Leave it out with --exclude, "
            "giving a part of its name that no other layer shares."
        )


class RankTooLarge(StageError):
    """The rank exceeds the smallest dimension of the targeted layers (-xs kinds only)."""

    def __init__(self, rank: int, limit: int, layer: str) -> None:
        self.limit = limit
        super().__init__(
            f"rank must be at most {limit} here; got {rank}. {layer} has a dimension of {limit}, "
            "and an -xs adapter cannot have a rank above it. Lower --rank or exclude that layer."
        )


class LatentsNotFinite(StageError):
    """The autoencoder returned NaN, infinity, or values beyond the range of the storage precision."""

    def __init__(self, clip_id: str, compute_dtype: str, latent_dtype: str) -> None:
        self.clip_id = clip_id
        super().__init__(
            f"the latents of {clip_id} are not finite (computed in {compute_dtype}, stored as {latent_dtype}). "
            "This clip was not stored. Run again with --encode-precision fp32 --latent-dtype float32, "
            "or check the weights."
        )


class DeviceNotFound(StageError):
    """The requested device is not available."""

    def __init__(self, device: str, why: str) -> None:
        super().__init__(
            f"--device {device} cannot be used: {why}. Use --device auto or cpu, or install another torch."
        )


class LossNotFinite(StageError):
    """Training met NaN or infinity; the last good checkpoint is kept."""

    def __init__(
        self, step: int, clip_ids: Sequence[str], what: str = "loss", base_precision: str | None = None
    ) -> None:
        """`base_precision`: another one is suggested only where it is fp16, whose range is small."""
        self.step, self.clip_ids = step, tuple(clip_ids)
        narrow = ", or train with --base-precision bf16 or fp32" if base_precision == "fp16" else ""
        super().__init__(
            f"the {what} is not finite at step {step}, on clips {', '.join(clip_ids)}. "
            "Earlier training is kept. Listen to these clips, or train with a lower --learning-rate "
            f"or --alpha, or with --gradient-clip 1{narrow}."
        )


class InsufficientMemory(StageError):
    """A training does not fit into the device's memory, by its estimate; nothing was loaded."""

    code = "MemoryShort"

    def __init__(
        self, device: str, needed: str, available: str, parts: str, alone: Sequence[str], together: Sequence[str]
    ) -> None:
        """`alone`: settings of which any one is enough; `together`: settings that are enough only in combination."""
        self.alone, self.together = tuple(alone), tuple(together)
        said = (
            f"training needs about {needed} of memory ({parts}), and {device} has {available} left. Nothing was loaded"
        )
        remedy = "No setting makes it fit: use a smaller --model or another --device, or stop other programs there."
        if alone:
            remedy = "Any one of these makes it fit:\n" + "\n".join(f"    {line}" for line in alone)
        elif together:
            remedy = "These together make it fit:\n" + "\n".join(f"    {line}" for line in together)
        super().__init__(f"{said}. {remedy}")


class OutOfMemory(StageError):
    """Loading or evaluating ran out of the device's memory; what was saved is kept."""

    code = "DeviceFullBeside"

    def __init__(self, device: str, activity: str) -> None:
        super().__init__(
            f"{device} ran out of memory while {activity}. Checkpoints are kept: the same command continues from the "
            "last one. Stop other programs on the device, or use --base-precision bf16, a smaller --model or another "
            "--device."
        )


class StepOutOfMemory(OutOfMemory):
    """A training step ran out of the device's memory; what was saved is kept."""

    code = "DeviceFull"

    def __init__(self, device: str, batch_size: int, num_frames: int, step: int) -> None:
        StageError.__init__(
            self,
            f"{device} ran out of memory at step {step}, with {batch_size} x {num_frames} latent frames in the batch. "
            "The last checkpoint is kept. Lower --batch-size, --frames-per-batch, --gradient-accumulation or "
            "--duration, stop other programs on the device, or use a smaller --model or another --device.",
        )
