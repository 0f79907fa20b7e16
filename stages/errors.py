"""What can go wrong in the workshop.

StageError
├── SourceUnreadable     the dataset is neither a readable zip nor a folder
├── DatasetFaults        the clips or captions are not fit to train on; every fault at once
├── SpaceShort           the disk cannot hold the prepared audio
├── EngineUnavailable    the joblib backend asked for cannot be started
├── PackageMissing       an option needs an optional package that is not installed
├── PreparedMissing      a clip's prepared audio is gone
├── CheckpointMismatch   a weight file does not cover its network, or covers more
├── NetworkNotSupported  a model_config.json asks for something that is not built
├── WeightsNotFound      no checkpoint folder where one was promised
├── AdapterMismatch      an adapter file does not fit the base model
├── AdapterNotWritable   trained values that the file's precision cannot hold
├── AdapterOrder         adapters stacked on one layer were to be merged out of order, or used after they were taken off
├── BasesDamaged         remembered singular vectors cannot be read
├── FilterMatchesNothing an include/exclude pattern names no module
├── LayerNotAdaptable    a targeted layer that no adapter kind can be evaluated on
├── RankTooLarge         a rank beyond what the targeted layers allow
├── LatentsNotFinite     the autoencoder gave NaN or infinity
├── DeviceNotFound       the device asked for is not there
├── LossNotFinite        training met NaN or infinity
├── MemoryShort          by its estimate a training cannot fit into the device's memory
├── DeviceFull           a training step does not fit into the device's memory
│   └── DeviceFullBeside loading or evaluating does not, rather than a step
└── Stopped              asked to stop (Ctrl-C, SIGTERM); work so far is kept
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class StageError(Exception):
    """A stage cannot go on; the message says what, why and what to type next."""


class Stopped(StageError):
    """The run was asked to stop; what is finished is kept and the same command goes on from there."""

    def __init__(self, where: str) -> None:
        super().__init__(f"stopped {where}; run the same command again to go on from there")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing wrong with one file of the dataset."""

    member: str
    """Path inside the zip or folder, with forward slashes; empty when it is about the whole dataset."""
    type: str
    """Short stable name, such as `missing_caption`; programs match on it."""
    msg: str
    """What is wrong and what to do about it, one sentence each."""

    def as_json(self) -> dict[str, object]:
        """The hosted trainer's error entry: loc, type, msg."""
        return {
            "loc": ["body", "audio_data_url", *([self.member] if self.member else [])],
            "type": self.type,
            "msg": self.msg,
        }


class DatasetFaults(StageError):
    """The dataset is not fit to train on. Holds every fault of every file."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        width = max((len(fault.member) for fault in self.faults), default=0)
        lines = [f"  {fault.member or '(dataset)':<{width}}  {fault.type}: {fault.msg}" for fault in self.faults]
        count = f"{len(self.faults)} problem{'s' if len(self.faults) != 1 else ''}"
        super().__init__(
            "\n".join([f"the dataset has {count}; nothing was committed:", *lines])
            + "\nMend the files and run again, or go on without the bad clips with --skip-bad."
        )


class SourceUnreadable(StageError):
    """The dataset is neither a readable zip nor a folder."""

    def __init__(self, path: Path, why: str, remedy: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{path} cannot be read as a dataset: {why}. {remedy}")

    def as_json(self) -> dict[str, object]:
        """The hosted trainer's error entry."""
        return {"loc": ["body", "audio_data_url"], "type": "invalid_archive", "msg": str(self)}


class SpaceShort(StageError):
    """The disk cannot hold the prepared audio; nothing was written."""

    def __init__(self, where: Path, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(
            f"preparing the clips needs about {needed_bytes / 2**30:,.1f} GiB in {where}, and "
            f"{free_bytes / 2**30:,.1f} GiB are free there. Nothing was written. "
            "Make room, or choose another folder with --store, then run again."
        )


class EngineUnavailable(StageError):
    """The joblib backend asked for cannot be started."""

    def __init__(self, engine: str, why: str, remedy: str) -> None:
        super().__init__(f"--engine {engine} cannot be used: {why}. {remedy}, or leave --engine out.")


class PackageMissing(StageError):
    """An option needs an optional package that is not installed."""

    def __init__(self, what: str, package: str) -> None:
        super().__init__(f"{what} needs the package {package}. Install it with `pip install {package}`, or go without.")


class PreparedMissing(StageError):
    """A clip's prepared audio is gone or damaged; ingest makes it again."""

    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        super().__init__(
            f"the prepared audio {path} {why}. "
            "Run `sa3-trainer ingest` on the dataset again: it makes only what is missing."
        )


class CheckpointMismatch(StageError):
    """A weight file and its network disagree. Lists every tensor concerned."""

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


class NetworkNotSupported(StageError):
    """A model_config.json asks for something that is not built; going on would compute something else."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(
            f"the {where} section of model_config.json: {what}. "
            "Use one of the base models this version knows (sa3-trainer --help lists them), or correct the config."
        )


class WeightsNotFound(StageError):
    """No checkpoint folder where one was promised."""

    def __init__(self, where: str, why: str, remedy: str) -> None:
        super().__init__(f"no weights at {where}: {why}. {remedy}")


class AdapterMismatch(StageError):
    """An adapter file does not fit the base model, its settings, or the kind asked for."""

    def __init__(self, file: str, differences: Sequence[str]) -> None:
        self.differences = tuple(differences)
        lines = "\n".join(f"    {line}" for line in differences)
        super().__init__(
            f"{file} does not fit this training:\n{lines}\n"
            "Train with the adapter's own model, adapter_type, rank, include and exclude, or start without it."
        )


class AdapterNotWritable(StageError):
    """Adapter tensors hold values that the file's precision cannot hold; nothing was written."""

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
        super().__init__(f"{file} was not written; of its tensors\n  " + "\n  ".join(parts) + f"\n{remedy}")


class AdapterOrder(StageError):
    """Adapters were merged out of order, or used after they were taken off."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}. {remedy}")


class BasesDamaged(StageError):
    """A file of remembered singular vectors cannot be read."""

    def __init__(self, file: str, why: str) -> None:
        super().__init__(
            f"{file} does not hold the singular vectors it should ({why}). "
            "Delete this one file and run again: it is computed anew."
        )


class FilterMatchesNothing(StageError):
    """An include/exclude pattern names no module of the model."""

    def __init__(self, field: str, patterns: Sequence[str], near: Sequence[str]) -> None:
        self.field = field
        shown = ", ".join(repr(pattern) for pattern in patterns) or "the empty list"
        names = "\n".join(f"    {name}" for name in near)
        super().__init__(
            f"{field}: {shown} matches no module. Patterns are plain substrings with [a-b] ranges. Near names:\n{names}"
        )


class LayerNotAdaptable(StageError):
    """A targeted layer that no adapter kind can be evaluated on."""

    def __init__(self, layer: str, why: str) -> None:
        super().__init__(
            f"{layer} cannot carry an adapter: {why}. Leave it out with --exclude, "
            "giving a part of its name that no other layer shares."
        )


class RankTooLarge(StageError):
    """A rank beyond the smallest dimension of the targeted layers (-xs kinds only)."""

    def __init__(self, rank: int, limit: int, layer: str) -> None:
        self.limit = limit
        super().__init__(
            f"rank must be at most {limit} here; got {rank}. {layer} has a dimension of {limit}, "
            "and an -xs adapter cannot have a rank above it. Lower --rank or exclude that layer."
        )


class LatentsNotFinite(StageError):
    """The autoencoder gave NaN, infinity, or values beyond the storage precision."""

    def __init__(self, clip_id: str, compute_dtype: str, latent_dtype: str) -> None:
        self.clip_id = clip_id
        super().__init__(
            f"the latents of {clip_id} are not finite (computed in {compute_dtype}, stored as {latent_dtype}). "
            "Nothing of this clip was stored. Run again with --encode-precision fp32 --latent-dtype float32, "
            "or check the weights."
        )


class DeviceNotFound(StageError):
    """The device asked for is not there."""

    def __init__(self, device: str, why: str) -> None:
        super().__init__(
            f"--device {device} cannot be used: {why}. Use --device auto or cpu, or install another torch."
        )


class LossNotFinite(StageError):
    """Training met NaN or infinity; the last good checkpoint is kept."""

    def __init__(
        self, step: int, clip_ids: Sequence[str], what: str = "loss", base_precision: str | None = None
    ) -> None:
        """`base_precision`: of the training, where it is known; only fp16 is so narrow that another may help."""
        self.step, self.clip_ids = step, tuple(clip_ids)
        narrow = ", or train with --base-precision bf16 or fp32" if base_precision == "fp16" else ""
        super().__init__(
            f"the {what} is not finite at step {step}, on clips {', '.join(clip_ids)}. "
            "What was trained before it is kept. Listen to these clips, or train with a lower --learning-rate "
            f"or --alpha, or with --gradient-clip 1{narrow}."
        )


class MemoryShort(StageError):
    """By its estimate a training cannot fit into the device's memory; nothing was loaded."""

    def __init__(
        self, device: str, needed: str, available: str, parts: str, alone: Sequence[str], together: Sequence[str]
    ) -> None:
        """`alone`: settings each of which is enough; `together`: settings that are enough only all at once."""
        self.alone, self.together = tuple(alone), tuple(together)
        said = (
            f"training needs about {needed} of memory ({parts}), and {device} has {available} left. Nothing was loaded."
        )
        remedy = "No setting makes it fit: take a smaller --model or another --device, or stop other programs there."
        if alone:
            remedy = "Any one of these makes it fit:\n" + "\n".join(f"    {line}" for line in alone)
        elif together:
            remedy = "These together make it fit:\n" + "\n".join(f"    {line}" for line in together)
        super().__init__(f"{said} {remedy}")


class DeviceFull(StageError):
    """A training step does not fit into the device's memory; what was saved is kept."""

    def __init__(self, device: str, batch_size: int, num_frames: int, step: int) -> None:
        super().__init__(
            f"{device} ran out of memory at step {step}, with {batch_size} x {num_frames} latent frames in the batch. "
            "The last checkpoint is kept. Lower --batch-size, --frames-per-batch, --gradient-accumulation or "
            "--duration, stop other programs on the device, or take a smaller --model or another --device."
        )


class DeviceFullBeside(DeviceFull):
    """Loading or evaluating does not fit into the device's memory; what was saved is kept."""

    def __init__(self, device: str, what: str) -> None:
        StageError.__init__(
            self,
            f"{device} ran out of memory while {what}. Checkpoints are kept: the same command goes on from the last. "
            "Stop other programs on the device, or take --base-precision bf16, a smaller --model or another --device.",
        )
