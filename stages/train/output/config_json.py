"""config.json beside an adapter: the request as resolved, the dataset, and the results."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from stages.field import declared_fields
from stages.records import AdapterSpec
from stages.train.job import Job
from stages.train.model.evaluation import TIMESTEPS, Evaluation
from stages.train.record.metrics import LOSS_WINDOW, window_means
from stages.versions import version_of

FORMAT_VERSION = 1
_PACKAGES = ("stable-audio-3-trainer", "torch", "safetensors", "numpy")


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """What is known at the end of a training, apart from params."""

    spec: AdapterSpec
    """Spec of the adapter, with alpha as resolved."""
    rank_limit: int
    """Smallest dimension of the adapted layers: the largest rank that an -xs kind can have."""
    num_parameters: int
    num_layers: int
    losses: Sequence[float]
    """Loss of every step."""
    before: Evaluation
    unquantized: Evaluation | None
    """Evaluation before training on the unquantised base; None where the base is not quantised."""
    after: Evaluation
    ema: Evaluation | None
    """Evaluation of the moving average, where there is one."""
    seconds: float
    """Time spent in steps."""
    precision_used: str
    """Precision of the base: as requested, or what the device computes in instead."""
    quantization_used: str
    """Quantisation of the base, likewise."""
    started: str
    finished: str
    """UTC, of the run that finished the training."""


def configuration(job: Job, summary: TrainingSummary) -> dict[str, Any]:
    """Content of config.json: JSON values only."""
    return {
        "format_version": FORMAT_VERSION,
        "identity": job.work.identity,
        **model_entry(job),
        **request_entry(job, summary),
        "dataset": dataset_entry(job),
        **result_entry(summary),
        "device": str(job.device),
        "threads": torch.get_num_threads(),
        "times": {"started": summary.started, "finished": summary.finished, "training_seconds": summary.seconds},
        "versions": {"python": platform.python_version()} | {name: version_of(name) for name in packages(job, summary)},
    }


def packages(job: Job, summary: TrainingSummary) -> Iterator[str]:
    """Packages whose versions may change the adapter's values."""
    yield from _PACKAGES
    used = {**vars(job.params), "base_quantization": summary.quantization_used}
    for field in declared_fields(job.params):
        if field.needs is not None and used[field.attribute] != field.default:
            yield field.needs.package


def model_entry(job: Job) -> dict[str, Any]:
    """The base model, and the inference model that its adapters are for."""
    return {
        "model": job.model.name,
        "inference_model": job.model.inference_model,
        "base_model_repo": job.model.repo,
        "base_digest": job.weights.digests["transformer"],
        "weights_digests": dict(job.weights.digests),
    }


def request_entry(job: Job, summary: TrainingSummary) -> dict[str, Any]:
    """Every param as resolved, and the duration found."""
    params = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(job.params).items()}
    return {
        **params,
        "duration": int(job.artifact.facts["window_samples"]) / job.model.sample_rate_hz,
        "alpha": summary.spec.alpha,
        "lora_checkpoint_file": started_from.name
        if (started_from := job.inputs.files.get("lora_checkpoint"))
        else None,
        "base_precision_used": summary.precision_used,
        "base_quantization_used": summary.quantization_used,
        "rank_limit": summary.rank_limit,
    }


def dataset_entry(job: Job) -> dict[str, Any]:
    """The dataset, named by content."""
    artifact, source = job.artifact, job.inputs.source
    return {
        "fingerprint": source.fingerprint if source else artifact.facts.get("dataset", artifact.fingerprint),
        "artifact": {"stage": artifact.stage, "fingerprint": artifact.fingerprint},
        "num_clips": int(artifact.facts["num_clips"]),
        "window_samples": int(artifact.facts["window_samples"]),
        "window_frames": int(artifact.facts["window_frames"]),
        "trigger_phrase": artifact.facts.get("trigger_phrase"),
        "latent_format": artifact.facts.get("latent_format"),
        "skipped": list(artifact.facts.get("skipped", [])),
    }


def result_entry(summary: TrainingSummary) -> dict[str, Any]:
    """Results. Losses of single steps vary with their timesteps, so final and best loss are means over windows."""
    means = window_means(np.asarray(summary.losses, dtype=np.float64))
    best = int(np.argmin(means))
    return {
        "steps_done": len(summary.losses),
        "trainable_parameters": summary.num_parameters,
        "adapted_layers": summary.num_layers,
        "loss_window_steps": min(LOSS_WINDOW, len(summary.losses)),
        "final_loss": float(means[-1]),
        "best_loss": float(means[best]),
        "best_loss_step": best + min(LOSS_WINDOW, len(summary.losses)),
        "loss_before": summary.before.loss,
        "loss_before_unquantized": None if summary.unquantized is None else summary.unquantized.loss,
        "loss_after": summary.after.loss,
        "loss_after_ema": None if summary.ema is None else summary.ema.loss,
        "loss_by_timestep": by_timestep(summary),
        "seconds_per_step": summary.seconds / len(summary.losses),
    }


def by_timestep(summary: TrainingSummary) -> list[Mapping[str, float]]:
    """Loss on fixed noise at fixed timesteps, before and after."""
    rows = zip(TIMESTEPS, summary.before.by_timestep, summary.after.by_timestep, strict=True)
    return [{"timestep": timestep, "before": before, "after": after} for timestep, before, after in rows]
