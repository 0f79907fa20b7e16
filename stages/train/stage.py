"""Parameters of train, and the declaration of the stage. Light: standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stages import catalogue
from stages.adapters.kind import kind_named
from stages.contract import Stage
from stages.field import OptionalPackage, check, param
from stages.precision import PRECISIONS

SCHEDULES = ("constant", "cosine", "inverse")

MOST_ACCUMULATED = 1024
"""Most microbatches of a step; the host holds all of them at once."""

LEGACY_KINDS = {"dora": "dora-rows"}
"""Former names of adapter kinds, and the kind that each is hashed as."""

TORCHAO = OptionalPackage(extra="quantization", package="torchao", module="torchao")
PYTORCH_OPTIMIZER = OptionalPackage(extra="optimizers", package="pytorch-optimizer", module="pytorch_optimizer")


@dataclass(frozen=True, kw_only=True)
class TrainParams:
    """Params of train; all of them are hashed.

    `number_of_steps` names the artifact but not the run, so a run can go on to more steps; unless the learning rate
    of every step depends on how many there are (`schedule` cosine).
    """

    model: str
    number_of_steps: int = param(1000, ge=1, le=20_000, help="optimiser steps")
    learning_rate: float = param(
        1e-4,
        gt=0,
        le=0.01,
        help="learning rate of the adapter after the warm-up; prodigy scales its own rate by learning_rate / 0.0001",
    )
    rank: int = param(16, ge=1, le=256, help="adapter rank; -xs kinds: at most the smallest layer dimension")
    alpha: float | None = param(None, gt=0, help="adapter alpha; unset: the rank")
    """None when continuing from an adapter file: as that file."""
    adapter_type: str = param("dora-rows", choices=catalogue.adapter_kinds, help="adapter kind")
    adapter_dropout: float = param(0.0, ge=0, lt=1, help="dropout inside the adapter")
    include: tuple[str, ...] | None = param(
        None, help="adapt only modules whose name contains one of these; [a-b] ranges"
    )
    exclude: tuple[str, ...] | None = param(None, help="skip modules whose name contains one of these; [a-b] ranges")
    batch_size: int = param(1, ge=1, le=8, help="clips per step")
    seed: int = param(
        42,
        ge=0,
        le=2**31 - 1,
        help="random seed; the same seed and inputs give the same adapter, byte for byte on one machine, device and "
        "number of threads",
    )
    base_precision: str = param("bf16", choices=PRECISIONS, help="precision of the frozen base; the adapter is fp32")
    """The loss and the optimiser are fp32 as well."""
    pre_encode: bool = param(False, help="train from cached latents instead of encoding inside the training loop")
    lora_checkpoint: str | None = None
    """Digest of the adapter file to start from."""
    export_precision: str = param(
        "fp16",
        choices=("fp16", "fp32"),
        order=1,
        help="precision of the adapter file in the output folder",
    )
    """The artifact always holds adapter_fp32.safetensors as well."""

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = param(1e-8, gt=0)
    weight_decay: float = param(0.01, ge=0, help="decoupled weight decay")
    decay_magnitudes: bool = param(True, help="apply weight decay to magnitudes too")
    optimizer: str = param(
        "adamw",
        choices=("adamw", "prodigy", "lion"),
        needs=PYTORCH_OPTIMIZER,
        help="optimiser of the adapter",
    )
    schedule: str = param("constant", choices=SCHEDULES, help="learning rate schedule after the warm-up")
    """`cosine` falls to 0 at the last step; `inverse` has a rise of its own, which `warmup_steps` replaces."""
    warmup_steps: int = param(0, ge=0, help="steps of linear learning rate warm-up")
    """The rise is linear."""
    gradient_accumulation: int = param(
        1,
        ge=1,
        le=MOST_ACCUMULATED,
        help="batches whose gradients one step adds up, as one batch that many times as large",
    )
    """Device memory stays about that of one batch."""
    gradient_clip: float | None = param(None, gt=0, help="largest norm of the gradient; unset: no clipping")
    ema_decay: float | None = param(
        None,
        gt=0,
        lt=1,
        help="decay of a moving average of the adapter, such as 0.999, exported as well; unset: no average",
    )

    # The largest number of frames is more than any device holds of the smallest model.
    frames_per_batch: int | None = param(
        None, ge=1, le=1_000_000, help="latent frames per batch: as many clips as fit, in place of batch_size"
    )
    crops_per_clip: int = param(1, ge=1, help="random crops per epoch of a clip longer than the crop length")
    crop_seconds: bool = param(False, help="condition on the length of the crop, not of the whole recording")
    """Off as in the reference implementation."""
    deterministic: bool = param(
        True,
        help="use only bit-reproducible kernels; off may be faster on CUDA for models without differential attention",
    )
    base_quantization: str = param(
        "none",
        choices=("none", "int8", "fp8"),
        needs=TORCHAO,
        help="store the frozen weight matrices in 8 bits, to save memory",
    )

    cfg_dropout_prob: float = param(0.1, ge=0, le=1)
    """How often a clip is trained without its prompt (and duration token)."""
    mask_probabilities: tuple[float, ...] = (0.1, 0.8, 0.1)
    """Probabilities of the inpainting masks: segments, full, causal and, if there is a fourth, spans."""
    mask_loss_weight: float = param(1.0, ge=0)
    """Weight of the loss on frames that were given, beside that on frames to be generated."""
    silence_extension_seconds: float = param(4.0, ge=0)
    """Mean of the random length of silence behind a clip that is trained on as well."""
    timestep_truncation: float = param(0.075, gt=0, lt=1)
    """Lower bound of the truncated logistic normal that timesteps come from, 1 = clean."""
    optimal_transport: bool = param(True)
    """Pair noise with clips inside a batch; without effect at batch_size 1."""
    polarity_flip: bool = param(True)
    """Flip the sign of half of the clips; only where audio is encoded inside the loop."""
    autoencoder_precision: str = param("fp32", choices=PRECISIONS)
    """Precision of the autoencoder that encodes inside the loop."""

    def __post_init__(self) -> None:
        for name, value in _canonical(self).items():
            object.__setattr__(self, name, value)
        check(self, "train")
        for name, why in conflicting_fields(vars(self)):
            raise ValueError(f"train.{name} {why}; got {getattr(self, name)!r}")
        for name, holds, rule in _joint_rules(self):
            if not holds:
                raise ValueError(f"train.{name} must be {rule}; got {getattr(self, name)!r}")


def _canonical(params: TrainParams) -> dict[str, object]:
    """Every field in canonical form, so that two spellings of the same training have the same fingerprint."""
    declared = {field.name: field.type for field in fields(params)}
    values: dict[str, Any] = {name: _canonical_value(kind, getattr(params, name)) for name, kind in declared.items()}
    values["adapter_type"] = LEGACY_KINDS.get(params.adapter_type, params.adapter_type)
    for name in ("base_precision", "export_precision", "autoencoder_precision"):
        values[name] = PRECISIONS.get(values[name], values[name])
    if params.alpha is None and params.lora_checkpoint is None:
        values["alpha"] = float(params.rank)
    # Without weight decay, or without magnitudes, exempting magnitudes from it is the same training.
    values["decay_magnitudes"] = params.decay_magnitudes or params.weight_decay == 0 or not _has_magnitude(params)
    return values


def _has_magnitude(params: TrainParams) -> bool:
    """Whether the adapter kind trains magnitudes; True for unknown kinds, which `check` refuses afterwards."""
    kind = params.adapter_type
    return kind not in catalogue.adapter_kinds() or kind_named(kind).has_magnitude


def _canonical_value(declared: object, value: object) -> object:
    """The value with lists as tuples, and whole numbers as floats where floats are declared."""
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(value, tuple) and "float" in str(declared):
        return tuple(_canonical_value("float", entry) for entry in value)
    return float(value) if str(declared).startswith("float") and isinstance(value, int) else value


def conflicting_fields(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, what is wrong) where one field of a request rules out another's value.

    Args:
        values: params or a request by field name; fields that are missing conflict with none.
    """
    steps, warmup = values.get("number_of_steps"), values.get("warmup_steps")
    if steps is not None and warmup is not None and warmup >= steps:
        yield "warmup_steps", f"must be below number_of_steps, which is {steps}"
    clips = values.get("batch_size", 1)
    if values.get("frames_per_batch") is not None and clips != 1:
        yield "frames_per_batch", f"takes the place of batch_size, which is {clips}: give one of them"


def _joint_rules(params: TrainParams) -> list[tuple[str, bool, str]]:
    """(param, whether it holds, the rule in words) of rules beyond one param's own range, for what no request sets."""
    betas, probabilities = params.betas, params.mask_probabilities
    shares = len(probabilities) in (3, 4) and min(probabilities) >= 0 and abs(sum(probabilities) - 1) < 1e-6
    return [
        ("model", bool(params.model), "the name of a base model"),
        ("betas", len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "two numbers from 0 to below 1"),
        ("betas", params.optimizer != "lion" or betas == TrainParams.betas, "left at its default with optimizer lion"),
        (
            "eps",
            params.optimizer == "adamw" or params.eps == TrainParams.eps,
            "left at its default unless optimizer is adamw",
        ),
        ("mask_probabilities", shares, "three or four numbers from 0 that add up to 1"),
    ]


def exceeds_request(directory: Path, params: TrainParams) -> bool:
    """Whether a folder holds checkpoints beyond the requested number of steps, of a longer training."""
    steps = [path.name.removeprefix("step-") for path in directory.glob("checkpoints/step-*")]
    return any(step.isdigit() and int(step) > params.number_of_steps for step in steps)


def excluded_from_identity(params: TrainParams) -> tuple[str, ...]:
    """Params that are not part of a run's identity, so that changing them continues the same run.

    A run continues to more steps, unless the learning rate of every step so far depends on their number. Another export
    precision is another artifact of the same run: nothing is trained for it.
    """
    exported = ("export_precision",)
    return exported if params.schedule == "cosine" else ("number_of_steps", *exported)


STAGE = Stage(
    name="train",
    version=6,
    params=TrainParams,
    inputs=("ingest", "encode"),
    entry="stages.train.run:train",
    components=("transformer", "conditioner"),
    excluded_from_identity=excluded_from_identity,
    exceeds_request=exceeds_request,
)
