"""Entry point of the train stage: from latents or prepared audio to a trained adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from stages.adapters.singular_vectors import SingularVectorFolder
from stages.contract import Inputs, Outcome, Workspace
from stages.models.device import explain_out_of_memory, precision_of, set_threads, training_threads
from stages.models.load_weights import stored_matrix
from stages.models.quantized_linear import quantization_of
from stages.train.dataset.audio_prefetch import AudioPrefetcher
from stages.train.dataset.examples import Examples, load_examples
from stages.train.dataset.length_buckets import length_buckets_for
from stages.train.determinism import deterministic_algorithms
from stages.train.forecast.check_memory import check_memory
from stages.train.forecast.disk_space import check_disk_space
from stages.train.job import Job
from stages.train.loop import TrainingLoop
from stages.train.model.evaluation import Evaluation, evaluate, fixed_batches
from stages.train.optim.update_rules import PRODIGY_UNIT
from stages.train.output.adapter_files import adapter_metadata
from stages.train.output.config_json import TrainingSummary, configuration
from stages.train.output.exports import export, remove_exports
from stages.train.output.quantization_loss import UNQUANTIZED, quantization_note, unquantized_loss
from stages.train.output.readback import check_outputs
from stages.train.output.results import keep_last_checkpoint, write_adapters, write_config, write_tables
from stages.train.setup import adapted_rank_limit, new_training, newest_checkpoint, num_parameters
from stages.train.stage import TrainParams
from stages.train.training import Training

_RECEIPT_FACTS = (
    *("steps_done", "final_loss", "best_loss", "best_loss_step", "loss_before", "loss_after", "loss_after_ema"),
    "seconds_per_step",
    *("trainable_parameters", "adapted_layers", "rank_limit", "alpha", "base_precision_used", "device"),
    "base_quantization_used",
)
"""Entries of config.json that the receipt records."""


def train(inputs: Inputs, params: TrainParams, work: Workspace) -> Outcome:
    """Train an adapter, resuming from the newest checkpoint of an earlier run of the same identity.

    Writes adapter.safetensors and adapter_fp32.safetensors (with a moving average, adapter_ema and adapter_ema_fp32 as
    well), config.json, metrics.parquet, steps.parquet, layers.parquet and the last checkpoint, from which a longer
    training continues.

    Raises:
        Stopped, LossNotFinite: what is trained so far is saved.
        AdapterMismatch: the adapter to start from does not fit.
        InsufficientDiskSpace: what it writes does not fit on the disk.
        InsufficientMemory: by the estimate it cannot fit; names the settings that would.
        OutOfMemory: it does not fit after all.
        FilterMatchesNothing, RankTooLarge, WeightsMismatch, UnsupportedModelConfig, PackageMissing.
    """
    started = now()
    job = Job.of(inputs, params, work)
    set_threads(training_threads(work.resources.threads, job.width))
    job = check_memory(job)
    work.phase("reading the clips' latents" if params.pre_encode else "loading the autoencoder and embedding prompts")
    examples = load_examples(job)
    training = start_or_resume(job, examples)
    check_disk_space(job, training)
    with deterministic_algorithms(job.device, params.deterministic, work.say):
        work.phase("measuring the loss before training")
        evaluate_start(training, examples, work.say)
        work.phase("preparing the first step")
        seconds = run_steps(job, training, examples)
        work.phase("measuring the loss after training")
        config = configuration(job, summary_of(training, examples, seconds, started))
        work.phase("writing the adapter and reading it back")
        write_artifact(job, training, examples, config)
    if config["loss_after"] > config["loss_before"]:
        work.say(harm_note(params))
    return Outcome(facts={name: config[name] for name in _RECEIPT_FACTS})


def harm_note(params: TrainParams) -> str:
    """Advice for a training whose loss on fixed noise and timesteps has risen."""
    unit = f"; {PRODIGY_UNIT:g} leaves prodigy its own rate" if params.optimizer == "prodigy" else ""
    return (
        "the adapter is worse than the model it started from (loss on fixed noise and timesteps): "
        f"lower --learning-rate ({params.learning_rate:g}{unit}), or set --gradient-clip"
    )


def start_or_resume(job: Job, examples: Examples) -> Training:
    """A training before its first step, or as its newest checkpoint has it."""
    saved = newest_checkpoint(job)
    unquantized = unquantized_loss(job, examples, saved.notes if saved is not None else {})
    job.work.phase(f"loading {job.model.name}")
    with explain_out_of_memory("loading the base", job.device):
        training = new_training(job)
    if saved is not None:
        training.restore(saved)
        job.work.say(f"resuming from step {saved.step}")
    note_arithmetic(training, job.work.say)
    if unquantized is not None:
        training.notes[UNQUANTIZED] = list(unquantized.by_timestep)
    return training


def note_arithmetic(training: Training, say: Callable[[str], None]) -> None:
    """Note the device and the CPU threads of the next steps; say if those of earlier steps were others."""
    on_cpu = training.device.type == "cpu"
    now_on = f"cpu with --threads {torch.get_num_threads()}" if on_cpu else training.device.type
    before = training.notes.get("ran_on", now_on)
    if before != now_on:
        say(f"earlier steps ran on {before}, further ones run on {now_on}: the adapter's last bits depend on that")
    training.notes["ran_on"] = now_on


def evaluate_start(training: Training, examples: Examples, say: Callable[[str], None]) -> None:
    """Note the loss before training, once, and print what quantising the base has changed."""
    if "before" in training.notes:
        return
    found = evaluate(training.network, examples, training.device)
    training.notes["before"] = list(found.by_timestep)
    if (unquantized := training.notes.get(UNQUANTIZED)) is not None:
        scheme = quantization_of(training.network.denoiser)
        say(quantization_note(scheme, Evaluation(tuple(unquantized)), found))


def run_steps(job: Job, training: Training, examples: Examples) -> float:
    """Make the remaining steps; returns the seconds that all steps took. Raises: as `TrainingLoop.run`."""
    remaining = range(training.step, job.params.number_of_steps)
    with AudioPrefetcher(examples, remaining, job.work) as prefetcher:
        loop = TrainingLoop(
            training=training,
            batch_of_step=prefetcher.batch,
            clips_of_step=lambda step: examples.clips_and_starts(step)[0],
            work=job.work,
            identity=job.identity,
            export=partial(export, job),
            buckets=length_buckets_for(examples.clips),
        )
        loop.run()
    return loop.seconds


def write_artifact(job: Job, training: Training, examples: Examples, config: Mapping[str, Any]) -> None:
    """Write the files of the artifact; adapter files are read back into the base, and their outputs compared.

    Raises:
        AdapterMismatch: a file gives other outputs than what was trained.
    """
    directory = job.work.directory
    batch = next(fixed_batches(examples)).to(job.device)
    write_tables(directory, training, examples)
    with deterministic_algorithms(job.device):
        written = write_adapters(directory, training, adapter_metadata(job, training.step), batch)
        bases, stored = SingularVectorFolder(job.work.shared / "bases"), partial(stored_matrix, job.weights)
        check_outputs(training.network, batch, written, bases, stored)
    write_config(directory, config)
    remove_exports(directory)
    keep_last_checkpoint(directory, training.step)


def summary_of(training: Training, examples: Examples, seconds: float, started: str) -> TrainingSummary:
    """Summary of a finished training: evaluates the adapter and, if there is one, its moving average."""
    training.history.flush()
    network, ema = training.network, training.optimizer.ema
    with ema.swapped_in() if ema is not None else nullcontext():
        ema_evaluation = None if ema is None else evaluate(network, examples, training.device)
    return TrainingSummary(
        spec=network.adapter.spec,
        rank_limit=adapted_rank_limit(network),
        num_parameters=num_parameters(network.adapter),
        num_layers=len(network.adapter.layer_names()),
        losses=training.history.losses(training.params.mask_loss_weight).tolist(),
        before=Evaluation(tuple(training.notes["before"])),
        unquantized=Evaluation(tuple(losses)) if (losses := training.notes.get(UNQUANTIZED)) else None,
        after=evaluate(network, examples, training.device),
        ema=ema_evaluation,
        seconds=seconds,
        precision_used=precision_of(network.denoiser.dtype),
        quantization_used=quantization_of(network.denoiser),
        started=started,
        finished=now(),
    )


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
