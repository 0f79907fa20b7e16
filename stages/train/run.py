"""Latents or prepared audio in, a trained adapter out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cache.aside import write_aside
from cache.manifest import write_rows
from stages.adapters._svd import BasesFolder
from stages.contract import Inputs, Outcome, Workspace
from stages.models._device import set_threads, training_threads
from stages.train import checkpoint
from stages.train.config import Summary, configuration
from stages.train.evaluation import Evaluation, evaluate, fixed_batches
from stages.train.examples import Examples, examples_of
from stages.train.export import ADAPTER, TRAINED_VALUES, metadata_of, write_adapters
from stages.train.job import DTYPES, Job
from stages.train.lengths import buckets_of
from stages.train.loop import Fit, Training
from stages.train.metrics import ClipRow, StepRow, clip_rows, step_rows
from stages.train.readback import check_outputs
from stages.train.repeatable import repeatable
from stages.train.stage import TrainParams
from stages.train.start import new_training, num_parameters, rank_limit, resume

_FACTS = (
    *("steps_done", "final_loss", "best_loss", "best_loss_step", "loss_before", "loss_after", "seconds_per_step"),
    *("trainable_parameters", "adapted_layers", "rank_limit", "alpha", "base_precision_used", "device"),
)


def train(inputs: Inputs, params: TrainParams, work: Workspace) -> Outcome:
    """Fit an adapter, going on from where an earlier run of the same identity left off.

    Leaves adapter.safetensors, adapter_fp32.safetensors, config.json, metrics.parquet, steps.parquet and the last
    checkpoint, from which a longer training goes on.

    Raises:
        Stopped, LossNotFinite: with what is trained so far saved.
        AdapterMismatch: the adapter to start from does not fit.
        FilterMatchesNothing, RankTooLarge, CheckpointMismatch, NetworkNotSupported.
    """
    started = now()
    job = Job.of(inputs, params, work)
    set_threads(training_threads(work.resources.threads, job.width))
    examples, training = examples_of(job), new_training(job)
    resume(training, job)
    if "before" not in training.notes:
        training.notes["before"] = evaluated(training, examples)
    fit = Fit(training, examples.batch, work, job.identity, buckets_of(examples.clips))
    with repeatable(job.device):
        fit.run()
    summary = summarised(training, examples, fit.seconds, started)
    config = configuration(job, summary)
    leave(work.directory, training, examples, metadata_of(job, training.step), config)
    files = {work.directory / ADAPTER: DTYPES[params.export_precision], work.directory / TRAINED_VALUES: torch.float32}
    batch = next(fixed_batches(examples.clips, examples.prompts, examples.chance)).to(job.device)
    with repeatable(job.device):
        check_outputs(training.network, batch, files, BasesFolder(work.shared / "bases"))
    return Outcome(facts={name: config[name] for name in _FACTS})


def evaluated(training: Training, examples: Examples) -> list[float]:
    """Loss at each of the fixed timesteps, as the adapter is now."""
    found = evaluate(training.network, examples.clips, examples.prompts, examples.chance, training.device)
    return list(found.by_timestep)


def summarised(training: Training, examples: Examples, seconds: float, started: str) -> Summary:
    """Look back on a finished training."""
    training.history.settle()
    network = training.network
    return Summary(
        spec=network.adapter.spec,
        rank_limit=rank_limit(network),
        num_parameters=num_parameters(network.adapter),
        num_layers=len(network.adapter.layer_names()),
        losses=training.history.losses(training.params.mask_loss_weight).tolist(),
        before=Evaluation(tuple(training.notes["before"])),
        after=Evaluation(tuple(evaluated(training, examples))),
        seconds=seconds,
        precision_used=next(name for name, dtype in DTYPES.items() if dtype is network.denoiser.dtype),
        started=started,
        finished=now(),
    )


def leave(
    directory: Path, training: Training, examples: Examples, metadata: Mapping[str, str], config: Mapping[str, Any]
) -> None:
    """Write what the artifact is made of, and keep the last checkpoint only."""
    adapter, params, history = training.network.adapter, training.params, training.history
    write_adapters(directory, adapter.state(), adapter.spec, metadata, params.export_precision)
    seen = [examples.seen(step) for step in range(training.step)]
    write_rows(directory / "metrics.parquet", clip_rows(history, seen, params.mask_loss_weight), ClipRow)
    write_rows(directory / "steps.parquet", step_rows(history, params.learning_rate, params.mask_loss_weight), StepRow)
    write_aside(directory / "config.json", json.dumps(config, indent=2, ensure_ascii=False).encode())
    checkpoint.keep_only(directory / checkpoint.FOLDER, training.step)


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
