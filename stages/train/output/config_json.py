"""The JSON beside an adapter: what was asked for as resolved, what was found, what came of it."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from stages.models.quantized_linear import NONE
from stages.records import AdapterSpec
from stages.train.job import Job
from stages.train.model.evaluation import TIMESTEPS, Evaluation
from stages.train.record.metrics import LOSS_WINDOW, window_means

FORMAT_VERSION = 1
_PACKAGES = ("stable-audio-3-trainer", "torch", "safetensors", "numpy")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is known at the end of a training, apart from params."""

    spec: AdapterSpec
    """Of the adapter, with alpha as resolved."""
    rank_limit: int
    """Smallest dimension of the layers that carry the adapter: what an -xs rank may be at most."""
    num_parameters: int
    num_layers: int
    losses: Sequence[float]
    """Of every step."""
    before: Evaluation
    unquantized: Evaluation | None
    """As `before`, on the base as it was before it was rounded to 8 bits; None where it was not."""
    after: Evaluation
    average: Evaluation | None
    """Of the moving average, where there is one."""
    seconds: float
    """Spent in steps."""
    precision_used: str
    """Of the base: as asked for, or the nearest the device computes in."""
    quantization_used: str
    """Likewise."""
    started: str
    finished: str
    """UTC, of the run that finished it."""


def configuration(job: Job, summary: Summary) -> dict[str, Any]:
    """All of config.json: JSON values only."""
    return {
        "format_version": FORMAT_VERSION,
        **model_entry(job),
        **request_entry(job, summary),
        "dataset": dataset_entry(job),
        **result_entry(summary),
        "device": str(job.device),
        "times": {"started": summary.started, "finished": summary.finished, "training_seconds": summary.seconds},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages(job, summary)}},
    }


def packages(job: Job, summary: Summary) -> Iterator[str]:
    """Those that the adapter's bits come from."""
    yield from _PACKAGES
    if summary.quantization_used != NONE:
        yield "torchao"
    if job.params.optimizer != "adamw":
        yield "pytorch-optimizer"


def model_entry(job: Job) -> dict[str, Any]:
    """Which base model, and where its adapters are used."""
    return {
        "model": job.model.name,
        "inference_model": job.model.inference_model,
        "base_model_repo": job.model.repo,
        "base_digest": job.weights.digests["transformer"],
        "weights_digests": dict(job.weights.digests),
    }


def request_entry(job: Job, summary: Summary) -> dict[str, Any]:
    """Every param, resolved, and the duration found."""
    asked = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(job.params).items()}
    return {
        **asked,
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
    """What was trained on, by content."""
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


def result_entry(summary: Summary) -> dict[str, Any]:
    """What came of it. Losses of single steps differ by their timesteps, so they are averaged over windows."""
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
        "loss_after_ema": None if summary.average is None else summary.average.loss,
        "loss_by_timestep": by_timestep(summary),
        "seconds_per_step": summary.seconds / len(summary.losses),
    }


def by_timestep(summary: Summary) -> list[Mapping[str, float]]:
    """Loss on fixed noise at fixed timesteps, before and after."""
    rows = zip(TIMESTEPS, summary.before.by_timestep, summary.after.by_timestep, strict=True)
    return [{"timestep": timestep, "before": before, "after": after} for timestep, before, after in rows]
