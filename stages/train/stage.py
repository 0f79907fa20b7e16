"""What decides the adapter. Light: standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stages import catalogue
from stages.contract import Stage
from stages.precision import PRECISIONS

OPTIMIZERS = ("adamw", "prodigy", "lion")
"""All but the first come from the optional extra `optimizers`."""

SCHEDULES = ("constant", "cosine", "inverse")

QUANTIZATIONS = ("none", "int8", "fp8")
"""Of the frozen base's matrices; all but the first come from the optional extra `quantization`."""

MOST_ACCUMULATED = 1024
"""Batches of a step; all of them are held by the host at once."""

MOST_FRAMES = 1_000_000
"""Of a batch: more than any device holds of the smallest model."""

LEGACY_KINDS = {"dora": "dora-rows"}
"""Adapter kinds under an old name: the same adapter, so the same fingerprint."""


@dataclass(frozen=True, kw_only=True)
class TrainParams:
    """All of it is hashed.

    `number_of_steps` names the artifact but not the run, so a run can go on to more steps; unless the learning rate
    of every step depends on how many there are (`schedule` cosine).
    """

    model: str
    number_of_steps: int = 1000
    learning_rate: float = 1e-4
    rank: int = 16
    alpha: float | None = None
    """None: as the rank; when continuing from an adapter file, as that file."""
    adapter_type: str = "dora-rows"
    adapter_dropout: float = 0.0
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    batch_size: int = 1
    seed: int = 42
    base_precision: str = "bf16"
    """Of the frozen base: `bf16`, `fp16` or `fp32`. The adapter, the loss and the optimiser are fp32."""
    pre_encode: bool = False
    """Train from the latents of the encode stage; otherwise from prepared audio, encoded inside the loop."""
    lora_checkpoint: str | None = None
    """Digest of the adapter file to start from."""
    export_precision: str = "fp16"
    """Of adapter.safetensors: `fp16` as the field has it, or `fp32`. adapter_fp32.safetensors is always written."""

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_magnitudes: bool = True
    """Whether weight decay pulls on magnitudes too, as the field has it."""
    optimizer: str = "adamw"
    schedule: str = "constant"
    """What the learning rate does after the warm-up: `constant`, `cosine` (towards 0) or `inverse`."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly to its full value; in place of the rise that `inverse` has."""
    gradient_accumulation: int = 1
    """Batches that one step adds up: as one batch that many times as large, in about the device memory of one."""
    gradient_clip: float | None = None
    """Largest norm of the gradient; longer ones are scaled down to it. None: never."""
    ema_decay: float | None = None
    """Of an exponential moving average of the adapter, exported beside it. None: no average."""

    frames_per_batch: int | None = None
    """Most latent frames in a batch, as many clips as fit: in place of `batch_size`."""
    crops_per_clip: int = 1
    """How often a clip longer than the window is seen in an epoch, each time cropped elsewhere."""
    crop_seconds: bool = False
    """Tell the network how long the excerpt is; otherwise, as the field does, how long the whole recording."""
    deterministic: bool = True
    """Only kernels that give the same bits every time."""
    base_quantization: str = "none"
    """Of the frozen base's matrices: `none`, `int8` or `fp8` (weights only)."""

    cfg_dropout_prob: float = 0.1
    """How often a clip is trained without its prompt (and duration token)."""
    mask_probabilities: tuple[float, ...] = (0.1, 0.8, 0.1)
    """Of the inpainting masks: segments, full, causal and, if there is a fourth, spans."""
    mask_loss_weight: float = 1.0
    """Weight of the loss on frames that were given, beside that on frames to be generated."""
    silence_extension_seconds: float = 4.0
    """Mean of the random stretch of silence behind a clip that is trained on as well."""
    timestep_truncation: float = 0.075
    """Lower bound of the truncated logistic normal that timesteps come from, 1 = clean."""
    optimal_transport: bool = True
    """Pair noise with clips inside a batch; without effect at batch_size 1."""
    polarity_flip: bool = True
    """Flip the sign of half of the clips; only where audio is encoded inside the loop."""
    autoencoder_precision: str = "fp32"
    """Of the autoencoder that encodes inside the loop."""

    def __post_init__(self) -> None:
        for name, value in _canonical(self).items():
            object.__setattr__(self, name, value)
        for name, holds, rule in _rules(self):
            if not holds:
                raise ValueError(f"train.{name} must be {rule}; got {getattr(self, name)!r}")


def _canonical(params: TrainParams) -> dict[str, object]:
    """Every field in the one form it is hashed in: two spellings of the same training get the same name."""
    declared = {field.name: field.type for field in fields(params)}
    values: dict[str, Any] = {name: _one_spelling(kind, getattr(params, name)) for name, kind in declared.items()}
    values["adapter_type"] = LEGACY_KINDS.get(params.adapter_type, params.adapter_type)
    for name in ("base_precision", "export_precision", "autoencoder_precision"):
        values[name] = PRECISIONS.get(values[name], values[name])
    if params.alpha is None and params.lora_checkpoint is None:
        values["alpha"] = float(params.rank)
    # Where nothing pulls, or there is nothing to pull on, sparing magnitudes is the same training.
    values["decay_magnitudes"] = params.decay_magnitudes or params.weight_decay == 0 or _without_magnitudes(params)
    return values


def _without_magnitudes(params: TrainParams) -> bool:
    return params.adapter_type in ("lora", "lora-xs")


def _one_spelling(declared: object, value: object) -> object:
    """Lists become tuples, whole numbers become floats where floats are declared."""
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(value, tuple) and "float" in str(declared):
        return tuple(_one_spelling("float", entry) for entry in value)
    return float(value) if str(declared).startswith("float") and isinstance(value, int) else value


def _rules(params: TrainParams) -> list[tuple[str, bool, str]]:
    """(field, whether it holds, the rule in words). Comparisons are False for NaN."""
    kinds = catalogue.adapter_kinds()
    betas, probabilities = params.betas, params.mask_probabilities
    shares = len(probabilities) in (3, 4) and min(probabilities) >= 0 and abs(sum(probabilities) - 1) < 1e-6
    return [
        ("model", bool(params.model), "the name of a base model"),
        ("number_of_steps", _is_int(params.number_of_steps) and params.number_of_steps >= 1, "a whole number from 1"),
        ("learning_rate", 0 < params.learning_rate <= 0.01, "above 0 and at most 0.01"),
        ("rank", _is_int(params.rank) and 1 <= params.rank <= 256, "a whole number from 1 to 256"),
        ("alpha", params.alpha is None or 0 < params.alpha < math.inf, "above 0, or unset"),
        ("adapter_type", params.adapter_type in kinds, f"one of {', '.join(kinds)}"),
        ("adapter_dropout", 0 <= params.adapter_dropout < 1, "from 0 to below 1"),
        ("include", _is_names(params.include), "a list of patterns, or unset"),
        ("exclude", _is_names(params.exclude), "a list of patterns, or unset"),
        ("batch_size", _is_int(params.batch_size) and params.batch_size >= 1, "a whole number from 1"),
        ("seed", _is_int(params.seed) and 0 <= params.seed < 2**31, "a whole number from 0 to 2147483647"),
        ("base_precision", params.base_precision in PRECISIONS.values(), "bf16, fp16 or fp32"),
        ("export_precision", params.export_precision in ("fp16", "fp32"), "fp16 or fp32"),
        ("autoencoder_precision", params.autoencoder_precision in PRECISIONS.values(), "bf16, fp16 or fp32"),
        ("betas", len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "two numbers from 0 to below 1"),
        ("eps", 0 < params.eps < math.inf, "above 0"),
        ("weight_decay", 0 <= params.weight_decay < math.inf, "at least 0"),
        *_step_rules(params),
        *_batch_rules(params),
        ("cfg_dropout_prob", 0 <= params.cfg_dropout_prob <= 1, "from 0 to 1"),
        ("mask_probabilities", shares, "three or four numbers from 0 that add up to 1"),
        ("mask_loss_weight", 0 <= params.mask_loss_weight < math.inf, "at least 0"),
        ("silence_extension_seconds", 0 <= params.silence_extension_seconds < math.inf, "at least 0"),
        ("timestep_truncation", 0 < params.timestep_truncation < 1, "above 0 and below 1"),
    ]


def _step_rules(params: TrainParams) -> list[tuple[str, bool, str]]:
    """Of what is done with a gradient."""
    clip, decay, accumulated = params.gradient_clip, params.ema_decay, params.gradient_accumulation
    return [
        ("optimizer", params.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
        ("betas", params.optimizer != "lion" or params.betas == TrainParams.betas, "left alone with optimizer lion"),
        ("eps", params.optimizer == "adamw" or params.eps == TrainParams.eps, "left alone but with optimizer adamw"),
        ("schedule", params.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
        ("warmup_steps", _is_int(params.warmup_steps) and params.warmup_steps >= 0, "a whole number from 0"),
        ("warmup_steps", params.warmup_steps < params.number_of_steps, "below number_of_steps"),
        ("gradient_accumulation", *_counted(accumulated, MOST_ACCUMULATED)),
        ("gradient_clip", clip is None or 0 < clip < math.inf, "above 0, or unset"),
        ("ema_decay", decay is None or 0 < decay < 1, "above 0 and below 1, or unset"),
        ("base_quantization", params.base_quantization in QUANTIZATIONS, f"one of {', '.join(QUANTIZATIONS)}"),
    ]


def _batch_rules(params: TrainParams) -> list[tuple[str, bool, str]]:
    """Of what is in a batch."""
    budget, crops = params.frames_per_batch, params.crops_per_clip
    counted, words = _counted(budget, MOST_FRAMES)
    return [
        ("frames_per_batch", budget is None or counted, f"{words}, or unset"),
        ("frames_per_batch", budget is None or params.batch_size == 1, "unset where batch_size is given"),
        ("crops_per_clip", _is_int(crops) and crops >= 1, "a whole number from 1"),
    ]


def _counted(value: Any, most: int) -> tuple[bool, str]:
    """Whether that is a count of at most so many, and the rule in words."""
    return _is_int(value) and 1 <= value <= most, f"a whole number from 1 to {most}"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_names(value: object) -> bool:
    return value is None or (isinstance(value, tuple) and all(isinstance(name, str) for name in value))


def exceeds_request(directory: Path, params: TrainParams) -> bool:
    """Whether a longer training was stopped here, beyond the steps that are asked for now."""
    steps = [path.name.removeprefix("step-") for path in directory.glob("checkpoints/step-*")]
    return any(step.isdigit() and int(step) > params.number_of_steps for step in steps)


def excluded_from_identity(params: TrainParams) -> tuple[str, ...]:
    """A run goes on to more steps, unless every step so far would have had another learning rate.

    Another precision of the file is another artifact of the same run: nothing is trained for it.
    """
    exported = ("export_precision",)
    return exported if params.schedule == "cosine" else ("number_of_steps", *exported)


STAGE = Stage(
    name="train",
    version=5,
    params=TrainParams,
    inputs=("ingest", "encode"),
    entry="stages.train.run:train",
    components=("transformer", "conditioner"),
    excluded_from_identity=excluded_from_identity,
    exceeds_request=exceeds_request,
)
