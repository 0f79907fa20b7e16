"""Latents or prepared audio in, a trained adapter out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cache.aside import write_aside
from cache.fingerprint import fingerprint
from cache.manifest import write_rows
from cache.shelf import Shelf
from stages import catalogue
from stages.adapters._base import attach
from stages.adapters._svd import BasesFolder
from stages.contract import Inputs, Outcome, Weights, Workspace
from stages.models._device import pick_device, set_threads, usable_dtype
from stages.models._nets.schedule import shifted
from stages.models._weights import load_autoencoder, load_conditioner, load_denoiser
from stages.records import ModelSpec
from stages.train import checkpoint
from stages.train.batches import Batch, batch_at, clip_order, crops
from stages.train.clips import Clips, LiveLatents, StoredLatents
from stages.train.config import Summary, configuration
from stages.train.draws import Chance
from stages.train.evaluation import Evaluation, evaluate
from stages.train.export import DTYPES, metadata_of, read_start, resolved_spec, write_adapters
from stages.train.loop import Fit, Training
from stages.train.metrics import ClipRow, History, StepRow, clip_rows, step_rows
from stages.train.network import Network
from stages.train.optimizer import Optimizer
from stages.train.prompts import Prompts, embedded_prompts, stored_prompts
from stages.train.stage import STAGE, TrainParams


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What a training learns from: any step's batch can be made at any time."""

    clips: Clips
    prompts: Prompts
    params: TrainParams
    shift: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    @property
    def chance(self) -> Chance:
        return Chance(self.params.seed)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        return batch_at(step, self.clips, self.prompts, self.params, self.chance, self.shift)

    def seen(self, step: int) -> tuple[list[str], list[int]]:
        """Clip ids and first samples of a step's batch, without making it."""
        indices = clip_order(self.chance, len(self.clips.subjects), self.params.batch_size, step)
        starts = crops(self.clips, indices, self.chance.at("crop", step))
        return [self.clips.subjects[index].clip_id for index in indices], [
            start * self.clips.samples_per_unit for start in starts
        ]


def train(inputs: Inputs, params: TrainParams, work: Workspace) -> Outcome:
    """Fit an adapter, from where an earlier run of the same identity left off.

    Leaves adapter.safetensors, adapter_fp32.safetensors, config.json, metrics.parquet, steps.parquet and the last
    checkpoint, from which a longer training goes on.
    """
    started = now()
    set_threads(work.resources.threads)
    device = pick_device(work.resources.device)
    weights, model = present(inputs.weights), catalogue.models()[params.model]
    examples = examples_of(inputs, params, work, device)
    training = new_training(inputs, params, work, device)
    identity = identity_of(inputs, params, weights)
    resume(training, identity, work)
    if "before" not in training.notes:
        before = evaluate(training.network, examples.clips, examples.prompts, examples.chance, device)
        training.notes["before"] = list(before.by_timestep)
    fit = Fit(training, examples.batch, work, identity)
    fit.run()
    training.history.settle()
    summary = summarised(training, examples, fit.seconds, started)
    leave(work.directory, training, examples, metadata_of(model, weights, training.step))
    config = configuration(inputs, params, model, weights, summary)
    write_aside(work.directory / "config.json", json.dumps(config, indent=2, ensure_ascii=False).encode())
    return Outcome(facts=facts(config))


def present(weights: Weights | None) -> Weights:
    """The runner hands train its weights."""
    assert weights is not None, "the runner hands train its weights"
    return weights
