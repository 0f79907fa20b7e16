"""Step after step: one loop for every adapter kind and both sources of clips."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from stages.train.training import Training

QUIET_SECONDS = 10.0
"""Longest time without a progress line, where steps are slow."""


@dataclass
class TrainingLoop:
    """A training under way in a workspace."""

    training: Training
    batch_of_step: Callable[[int], Batch]
    """The batch of a step, counted from 0."""
    clips_at: Callable[[int], Sequence[str]]
    """Ids of its clips, without making it."""
    work: Workspace
    identity: str
    """Whose checkpoints these are."""
    buckets: LengthBuckets | None = None
    """Lengths that the fast path may round batches up to; None takes the plain one."""

    def __post_init__(self) -> None:
        self.total_steps = self.training.params.number_of_steps
        self.first_step, self.started = self.training.step, time.perf_counter()
        self.seconds_before = float(self.training.notes.get("seconds", 0.0))
        # Looking makes the host wait for the device: free on the CPU, elsewhere only when there is something to tell.
        self.looks_at_every_step = self.training.device.type == "cpu"
        self.told = self.started
        already = checkpoint.directory_of(self.folder, self.first_step).is_dir()
        self.saved_step = self.first_step if already else 0

    @property
    def folder(self) -> Path:
        """Where checkpoints lie."""
        return self.work.directory / checkpoint.FOLDER

    @property
    def seconds(self) -> float:
        """Time spent in steps, by this run and those it goes on from."""
        return self.seconds_before + time.perf_counter() - self.started

    def run(self) -> None:
        """Train up to the step asked for; saves on schedule, at the end, and when asked to stop.

        Raises:
            Stopped: asked to; everything so far is saved.
            LossNotFinite: a loss or gradient was NaN or infinite; that update was not made, what came before is saved.
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
                    raise Stopped(f"at step {self.training.step} of {self.total_steps}")
                try:
                    self.make_step(stepper)
                except Interrupted:  # while the step was prepared: it was not made
                    continue
                self.after_step()
        # Saved already, unless all steps were made by the run this one goes on from.
        self.save()

    def make_step(self, stepper: Stepper) -> None:
        """The next step, on its own batch. Raises: StepOutOfMemory, Interrupted."""
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
        """What is due: a look at the figures, a progress line, a checkpoint."""
        step, resources = self.training.step, self.work.resources
        late = time.perf_counter() - self.told > QUIET_SECONDS
        due_to_tell = late or step in (1, self.total_steps) or step % resources.log_every == 0
        due_to_save = step == self.total_steps or step % resources.checkpoint_every == 0
        if due_to_tell or self.looks_at_every_step:
            self.refuse_broken()
        if due_to_tell:
            self.work.progress(step, self.total_steps, self.line())
            self.told = time.perf_counter()
        if due_to_save:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is nothing new to save, and let go of old ones."""
        self.refuse_broken()
        if self.training.step > self.saved_step:
            self.training.notes["seconds"] = self.seconds
            checkpoint.write(self.folder, self.identity, self.training.as_checkpoint())
            checkpoint.keep_newest(self.folder, self.work.resources.keep_checkpoints)
            self.saved_step = self.training.step

    def refuse_broken(self) -> None:
        """Stop at the first step whose figures are not finite, with a checkpoint of what came before it."""
        training = self.training
        if not bool(training.optimizer.non_finite):
            return
        training.history.flush()
        broken, what = training.history.first_non_finite()
        # The optimiser has left everything as it was before that step, however many steps ago it was.
        training.history.truncate(broken)
        training.optimizer.clear_non_finite()
        training.step = broken
        self.save()
        raise LossNotFinite(broken + 1, self.clips_at(broken), what, training.params.base_precision)

    def line(self) -> str:
        """Loss, learning rate, speed, memory and time left."""
        training = self.training
        training.history.flush()
        recent = training.history.losses(training.params.mask_loss_weight, last=LOSS_WINDOW)
        rate = (training.step - self.first_step) / max(time.perf_counter() - self.started, 1e-9)
        left = int((self.total_steps - training.step) / rate)
        parts = [
            f"loss {recent.mean():.4f}",
            f"lr {training.optimizer.rule.effective_rate():.2g}",
            f"{rate:.2f} steps/s",
            *memory_held(training.device),
            f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left",
        ]
        return "  ".join(parts)


def memory_held(device: torch.device) -> list[str]:
    """Most memory the device has held, where torch knows it."""
    return [f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"] if device.type == "cuda" else []
