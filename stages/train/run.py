"""Latents or prepared audio in, a trained adapter out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

from stages.adapters.singular_vectors import SingularVectorFolder
from stages.contract import Inputs, Outcome, Workspace
from stages.models.device import explain_out_of_memory, precision_of, set_threads, training_threads
from stages.models.quantized_linear import quantization_of
from stages.train.dataset.audio_prefetch import AudioPrefetcher
from stages.train.dataset.examples import Examples, load_examples
from stages.train.dataset.length_buckets import length_buckets_for
from stages.train.determinism import deterministic_algorithms
from stages.train.forecast.check_memory import check_memory
from stages.train.job import Job
from stages.train.loop import TrainingLoop
from stages.train.model.evaluation import Evaluation, evaluate, fixed_batches
from stages.train.optim.update_rules import PRODIGY_UNIT
from stages.train.output.adapter_files import metadata_of
from stages.train.output.config_json import Summary, configuration
from stages.train.output.quantization_loss import UNQUANTIZED, rounding_line, unquantized_loss
from stages.train.output.readback import check_outputs
from stages.train.output.results import keep_last_checkpoint, leave_adapters, leave_config, leave_tables
from stages.train.setup import new_training, newest_checkpoint, num_parameters, rank_limit
from stages.train.stage import TrainParams
from stages.train.training import Training

_FACTS = (
    *("steps_done", "final_loss", "best_loss", "best_loss_step", "loss_before", "loss_after", "loss_after_ema"),
    "seconds_per_step",
    *("trainable_parameters", "adapted_layers", "rank_limit", "alpha", "base_precision_used", "device"),
    "base_quantization_used",
)


def train(inputs: Inputs, params: TrainParams, work: Workspace) -> Outcome:
    """Fit an adapter, going on from where an earlier run of the same identity left off.

    Leaves adapter.safetensors and adapter_fp32.safetensors (with an average, adapter_ema and adapter_ema_fp32 as well),
    config.json, metrics.parquet, steps.parquet, layers.parquet and the last checkpoint, from which a longer training
    goes on.

    Raises:
        Stopped, LossNotFinite: with what is trained so far saved.
        AdapterMismatch: the adapter to start from does not fit.
        InsufficientMemory: by its estimate it cannot fit; names the settings that would.
        OutOfMemory: it does not fit after all.
        FilterMatchesNothing, RankTooLarge, WeightsMismatch, UnsupportedModelConfig, PackageMissing.
    """
    started = now()
    job = Job.of(inputs, params, work)
    set_threads(training_threads(work.resources.threads, job.width))
    job = check_memory(job)
    examples = load_examples(job)
    training = begun(job, examples)
    with deterministic_algorithms(job.device, params.deterministic, work.say):
        note_before(training, examples, work.say)
        seconds = fitted(job, training, examples)
        config = configuration(job, summarised(training, examples, seconds, started))
        leave(job, training, examples, config)
    if config["loss_after"] > config["loss_before"]:
        work.say(worse_line(params))
    return Outcome(facts={name: config[name] for name in _FACTS})


def worse_line(params: TrainParams) -> str:
    """For a training that has spoiled what it began with."""
    unit = f"; {PRODIGY_UNIT:g} leaves prodigy its own rate" if params.optimizer == "prodigy" else ""
    return (
        "the adapter does worse on fixed noise and timesteps than where it began: "
        f"lower --learning-rate ({params.learning_rate:g}{unit}), or set --gradient-clip"
    )


def begun(job: Job, examples: Examples) -> Training:
    """A training before its first step, or where it was left."""
    saved = newest_checkpoint(job)
    exact = unquantized_loss(job, examples, saved.notes if saved is not None else {})
    with explain_out_of_memory("loading the base", job.device):
        training = new_training(job)
    if saved is not None:
        training.restore(saved)
        job.work.say(f"going on from step {saved.step}")
    if exact is not None:
        training.notes[UNQUANTIZED] = list(exact.by_timestep)
    return training


def note_before(training: Training, examples: Examples, say: Callable[[str], None]) -> None:
    """Note the loss that a training began with, once, and say what rounding the base has done to it."""
    if "before" in training.notes:
        return
    found = evaluate(training.network, examples, training.device)
    training.notes["before"] = list(found.by_timestep)
    if (exact := training.notes.get(UNQUANTIZED)) is not None:
        say(rounding_line(quantization_of(training.network.denoiser), Evaluation(tuple(exact)), found))


def fitted(job: Job, training: Training, examples: Examples) -> float:
    """Make the steps that are left; returns the seconds that all steps took. Errors as `TrainingLoop.run`."""
    remaining = range(training.step, job.params.number_of_steps)
    with AudioPrefetcher(examples, remaining, job.work) as ahead:
        buckets, clips_at = length_buckets_for(examples.clips), lambda step: examples.clips_and_starts(step)[0]
        fit = TrainingLoop(training, ahead.batch, clips_at, job.work, job.identity, buckets)
        fit.run()
    return fit.seconds


def leave(job: Job, training: Training, examples: Examples, config: Mapping[str, Any]) -> None:
    """Write what the artifact is made of; adapter files are loaded back into the base and compared by what it computes.

    Raises:
        AdapterMismatch: a file means something else than what was trained.
    """
    directory = job.work.directory
    batch = next(fixed_batches(examples)).to(job.device)
    leave_tables(directory, training, examples)
    with deterministic_algorithms(job.device):
        written = leave_adapters(directory, training, metadata_of(job, training.step), batch)
        check_outputs(training.network, batch, written, SingularVectorFolder(job.work.shared / "bases"))
    leave_config(directory, config)
    keep_last_checkpoint(directory, training.step)


def evaluated(training: Training, examples: Examples) -> list[float]:
    """Loss at each of the fixed timesteps, as the adapter is now."""
    return list(evaluate(training.network, examples, training.device).by_timestep)


def summarised(training: Training, examples: Examples, seconds: float, started: str) -> Summary:
    """Look back on a finished training."""
    training.history.flush()
    network, average = training.network, training.optimizer.ema
    with average.swapped_in() if average is not None else nullcontext():
        averaged = None if average is None else Evaluation(tuple(evaluated(training, examples)))
    return Summary(
        spec=network.adapter.spec,
        rank_limit=rank_limit(network),
        num_parameters=num_parameters(network.adapter),
        num_layers=len(network.adapter.layer_names()),
        losses=training.history.losses(training.params.mask_loss_weight).tolist(),
        before=Evaluation(tuple(training.notes["before"])),
        unquantized=Evaluation(tuple(exact)) if (exact := training.notes.get(UNQUANTIZED)) else None,
        after=Evaluation(tuple(evaluated(training, examples))),
        average=averaged,
        seconds=seconds,
        precision_used=precision_of(network.denoiser.dtype),
        quantization_used=quantization_of(network.denoiser),
        started=started,
        finished=now(),
    )


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
