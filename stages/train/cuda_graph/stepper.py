"""Which way through a step is taken, and what is done when it fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from stages.adapters.ops.frozen_matmul import has_triton
from stages.adapters.stacked.stacked_adapter import StackedAdapter
from stages.models.device import is_out_of_memory
from stages.train.cuda_graph.compiled_blocks import CompiledNetwork, compiled
from stages.train.cuda_graph.graph_steps import MAX_GRAPHS, GraphSteps
from stages.train.dataset.batch import Batch
from stages.train.dataset.length_buckets import LengthBuckets
from stages.train.training import Training

RECOMPUTES = "recomputes"
"""The note that blocks are computed again since memory was short."""


def failures() -> tuple[type[Exception], ...]:
    """What compiling or recording raises where something does not allow it; torch's compiler raises the first."""
    if not has_triton():
        return RuntimeError, NotImplementedError
    from triton.errors import TritonError  # deferred: Triton comes with CUDA builds of torch

    return RuntimeError, NotImplementedError, TritonError


class Stepper:
    """Steps in the fastest way there is: captured on CUDA, else and after a failure one operation at a time.

    Which way is taken follows from the device, the network and the batches, never from how many steps are left. What
    short memory has led to is kept in the checkpoints, so that a training that was stopped goes on in the same way.
    """

    def __init__(
        self,
        training: Training,
        buckets: LengthBuckets | None,
        caches: Path,
        say: Callable[[str], None],
        *,
        may_recompute: bool = True,
        wanted: bool = True,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Ways to step.

        Args:
            may_recompute: where memory turns out too short, compute blocks again in the backward pass.
            wanted: whether the fast path may be taken.
            should_stop: asked while something is compiled, too.
        """
        self.training, self.say, self.buckets, self.caches = training, say, buckets, caches
        self.may_recompute, self.wanted, self.should_stop = may_recompute, wanted, should_stop
        self.settings = ExitStack()
        self.fast: GraphSteps | None = None
        self.code: CompiledNetwork | None = None
        self.told_beyond = False

    def __enter__(self) -> Stepper:
        tower = self.training.network.denoiser.model.transformer
        tower.checkpointing |= bool(self.training.notes.get(RECOMPUTES)) and self.may_recompute
        if tower.checkpointing:
            self.training.notes[RECOMPUTES] = True
        layers = self.training.network.layers
        if why := self.why_not_graphs():
            self.say(f"stepping without the fast path: {why}")
        elif self.training.device.type == "cuda" and layers is not None and self.buckets is not None:
            self.prepare(layers, self.buckets)
        return self

    def prepare(self, layers: StackedAdapter, buckets: LengthBuckets) -> None:
        """Take the fast path from here on, unless this version of torch has not what it needs."""
        ordered = self.training.params.deterministic
        missing: tuple[type[Exception], ...] = (ImportError, AttributeError, TypeError, *failures())
        try:
            code = compiled(self.training.network.denoiser, layers, self.caches, deterministic=ordered)
            self.code = self.settings.enter_context(code)
        except missing as error:
            self.give_up(error)
            return
        self.fast = GraphSteps(self.training, buckets, self.say, self.should_stop)

    def why_not_graphs(self) -> str:
        """What of a training on CUDA cannot be recorded; empty when nothing is in the way."""
        if self.training.device.type != "cuda" or self.buckets is None:
            return ""
        if not self.wanted:
            return "fast_path is off"
        if self.training.network.layers is None:
            return "its layers are computed one by one"
        name = self.training.params.optimizer
        return "" if self.training.optimizer.rule.capturable else f"the host looks at every step of optimizer {name}"

    def __exit__(self, *exception: object) -> None:
        if self.fast is not None and self.fast.buckets.frames_padded > 0:
            buckets = self.fast.buckets
            self.say(
                f"of the frames worked on, {buckets.padding_share:.1%} were padding up to prepared lengths, "
                f"{buckets.masked_share:.1%} lay behind clips shorter than the longest of their batch"
            )
        self.plainly()

    def plainly(self) -> None:
        """From now on without what was prepared."""
        if self.fast is not None:
            self.fast.forget()
        self.fast = None
        self.settings.close()

    def advance(self, batch: Batch) -> None:
        """One update from a batch on the CPU.

        Raises:
            Interrupted: asked to stop while it was prepared; nothing was updated.
        """
        done, made = False, self.training.optimizer.num_updates
        while not done:
            try:
                self.step(batch)
                done = True
            except failures() as error:
                if self.training.optimizer.num_updates != made:
                    raise
                self.recover(error)
            # Tried again only out here: an error that is being handled holds on to what the step had made.

    def step(self, batch: Batch) -> None:
        """In the fastest way that is open to this batch."""
        if self.fast is None:
            self.training.advance(batch)
        elif not self.fast.advance(batch):
            self.step_beyond(batch)

    def step_beyond(self, batch: Batch) -> None:
        """One of the shapes that are too many to record each."""
        assert self.code is not None, "there is compiled code where there is a fast path"
        if not self.told_beyond:
            self.say(f"batches of more than {MAX_GRAPHS} shapes: others are stepped without the fast path")
            self.told_beyond = True
        with self.code.as_written():
            self.training.advance(batch)

    def recover(self, error: Exception) -> None:
        """Nothing of the failed step was kept: recompute blocks where memory was short, else take the plain way.

        Raises:
            error: that was the plain way.
        """
        tower = self.training.network.denoiser.model.transformer
        if is_out_of_memory(error) and self.may_recompute and not tower.checkpointing:
            self.say("device memory is short: recomputing each block in the backward pass from now on")
            tower.checkpointing = self.training.notes[RECOMPUTES] = True
            if self.fast is not None:
                self.fast.forget()
            return
        if self.fast is None:
            raise error
        self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """Say why there is no fast path, and go on without."""
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        self.say(f"stepping without the fast path ({type(error).__name__}: {reason[:200]})")
        self.plainly()
