"""The training loop: steps, progress lines, checkpoints and stops, for every adapter kind and source of clips."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stages.contract import Workspace
from stages.errors import LossNotFinite, StepOutOfMemory, Stopped
from stages.models.device import explain_out_of_memory, is_out_of_memory
from stages.train.cuda_graph.interruptible import Interrupted
from stages.train.cuda_graph.stepper import Stepper
from stages.train.dataset.batch import Batch
from stages.train.dataset.length_buckets import LengthBuckets
from stages.train.record import checkpoint
from stages.train.record.metrics import LOSS_WINDOW
from stages.train.record.step_rate import StepRate
from stages.train.training import Training

MAX_SECONDS_BETWEEN_LINES = 10.0
"""Longest time without a progress line, unless one step takes longer."""
SECONDS_BETWEEN_FIGURES = {True: 0.2, False: 2.0}
"""The same for a display that is redrawn: on the CPU (True), and where reading a loss makes the host wait."""


@dataclass
class TrainingLoop:
    """Runs a training in a workspace."""

    training: Training
    batch_of_step: Callable[[int], Batch]
    """The batch of a step, counted from 0."""
    clips_of_step: Callable[[int], Sequence[str]]
    """Clip ids of that batch, without reading it."""
    work: Workspace
    identity: str
    """Fingerprint of the run, written into its checkpoints."""
    export: Callable[[Training, bool], None] = lambda training, stopped: None
    """Exports the adapter as it is now; `stopped`: because the training ends here."""
    buckets: LengthBuckets | None = None
    """Lengths that batches are padded to for CUDA graphs; None makes every step eagerly."""

    def __post_init__(self) -> None:
        self.total_steps = self.training.params.number_of_steps
        first_step, self.started, self.step_rate = self.training.step, time.perf_counter(), StepRate()
        self.seconds_before = float(self.training.notes.get("seconds", 0.0))
        # Reading a value makes the host wait for the device; on the CPU there is nothing to wait for.
        self.checks_every_step = self.training.device.type == "cpu"
        self.last_line_time = self.last_figures_time = self.last_save_time = self.started
        is_saved = checkpoint.directory_of(self.folder, first_step).is_dir()
        self.saved_step = first_step if is_saved else 0

    @property
    def folder(self) -> Path:
        """Folder of the checkpoints."""
        return self.work.directory / checkpoint.FOLDER

    @property
    def seconds(self) -> float:
        """Time spent in steps, by this run and those it continues."""
        return self.seconds_before + time.perf_counter() - self.started

    def run(self) -> None:
        """Train up to `number_of_steps`; saves checkpoints on schedule, at the end, and when asked to stop.

        Raises:
            Stopped: a stop was requested; everything so far is saved.
            LossNotFinite: a loss or gradient was NaN or infinite; that update was skipped; what came before is saved.
        """
        self.training.network.train(True)
        caches = self.work.shared / "compiled"
        may, wanted = self.work.resources.gradient_checkpointing != "off", self.work.resources.fast_path != "off"
        say, stop = self.work.say, self.work.should_stop
        with Stepper(
            self.training, self.buckets, caches, say, may_recompute=may, wanted=wanted, should_stop=stop
        ) as stepper:
            while self.training.step < self.total_steps:
                if stop():
                    self.save()
                    self.export(self.training, True)
                    raise Stopped(f"at step {self.training.step} of {self.total_steps}")
                try:
                    self.make_step(stepper)
                except Interrupted:  # by a stop request while compiling: no step was made
                    continue
                self.after_step()
        # Saved already, unless all steps were made by the run that this one continues.
        self.save()

    def make_step(self, stepper: Stepper) -> None:
        """Make the next step. Raises: StepOutOfMemory, Interrupted."""
        step = self.training.step
        with explain_out_of_memory(f"reading the clips of step {step + 1}", self.training.device):
            batch = self.batch_of_step(step)
        try:
            stepper.advance(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size, _, num_frames = batch.latents_BCT.shape
            raise StepOutOfMemory(str(self.training.device), size, num_frames, step + 1) from error

    def after_step(self) -> None:
        """Do what is due after a step: check that figures are finite, print a progress line, save a checkpoint."""
        step, resources, now = self.training.step, self.work.resources, time.perf_counter()
        late = now - self.last_line_time > MAX_SECONDS_BETWEEN_LINES
        figures_are_due = now - self.last_figures_time > SECONDS_BETWEEN_FIGURES[self.checks_every_step]
        line_is_due = late or step in (1, self.total_steps) or step % resources.log_every == 0
        waited = now - self.last_save_time > 60 * resources.checkpoint_minutes
        save_is_due = waited or step == self.total_steps or step % resources.checkpoint_every == 0
        if line_is_due or figures_are_due or self.checks_every_step:
            self.check_finite()
            self.step_rate.measure(step, self.training.preparation_seconds)
        if line_is_due or figures_are_due:
            self.report(interim=not line_is_due)
        if save_is_due:
            self.save()
        if resources.save_every is not None and step % resources.save_every == 0:
            self.check_finite()
            self.export(self.training, False)

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one, and delete old ones."""
        self.check_finite()
        self.last_save_time = time.perf_counter()
        if self.training.step > self.saved_step:
            self.training.notes["seconds"] = self.seconds
            checkpoint.write(self.folder, self.identity, self.training.as_checkpoint())
            checkpoint.keep_newest(self.folder, self.work.resources.keep_checkpoints)
            self.saved_step = self.training.step

    def check_finite(self) -> None:
        """Raise LossNotFinite if a loss or gradient was not finite, with a checkpoint of the step before it."""
        training = self.training
        if not bool(training.optimizer.non_finite):
            return
        training.history.flush()
        first, what = training.history.first_non_finite()
        # The optimiser has kept the state before that step, however many steps ago it was.
        training.history.truncate(first)
        training.optimizer.clear_non_finite()
        training.step = first
        self.save()
        self.export(training, True)
        raise LossNotFinite(first + 1, self.clips_of_step(first), what, training.params.base_precision)

    def report(self, *, interim: bool) -> None:
        """Report the step, and what is known about it."""
        self.work.progress(self.training.step, self.total_steps, interim=interim, **self.figures())
        self.last_figures_time = time.perf_counter()
        if not interim:
            self.last_line_time = self.last_figures_time

    def figures(self) -> dict[str, Any]:
        """Mean loss of recent steps, learning rate, and, once known, memory and speed."""
        training = self.training
        training.history.flush()
        recent = training.history.losses(training.params.mask_loss_weight, last=LOSS_WINDOW)
        found: dict[str, Any] = {
            "loss": float(recent.mean()),
            "learning_rate": float(training.optimizer.rule.effective_rate()),
        }
        if training.device.type == "cuda":
            found["memory_bytes"] = torch.cuda.max_memory_allocated(training.device)
        rate = self.step_rate.steps_per_second
        return found if rate is None else found | {"steps_per_second": rate}
