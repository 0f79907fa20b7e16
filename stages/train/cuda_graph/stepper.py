"""Chooses how steps are made, by CUDA graphs or eagerly, and falls back when graphs or memory fail."""

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
"""Key of the note that gradient checkpointing was switched on because memory was short."""


def failures() -> tuple[type[Exception], ...]:
    """Exceptions of compiling and capturing where something does not support it; torch's compiler raises the first."""
    if not has_triton():
        return RuntimeError, NotImplementedError
    from triton.errors import TritonError  # deferred: Triton comes with CUDA builds of torch

    return RuntimeError, NotImplementedError, TritonError


class Stepper:
    """Makes steps in the fastest way available: CUDA graphs, or eagerly on other devices and after a failure.

    The choice depends on the device, the network and the batches, never on how many steps are left. Whether memory was
    short is kept in the checkpoints, so a training that was stopped continues in the same way.
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
        """Makes steps of this training.

        Args:
            buckets: lengths that batches are padded to for graphs; None makes every step eagerly.
            caches: folder of compiled code.
            may_recompute: switch gradient checkpointing on where memory turns out too short.
            wanted: whether graphs may be used (`fast_path`).
            should_stop: polled during compilation too.
        """
        self.training, self.say, self.buckets, self.caches = training, say, buckets, caches
        self.may_recompute, self.wanted, self.should_stop = may_recompute, wanted, should_stop
        self.settings = ExitStack()
        self.graph_steps: GraphSteps | None = None
        self.compiled: CompiledNetwork | None = None
        self.has_reported_overflow = False

    def __enter__(self) -> Stepper:
        tower = self.training.network.denoiser.model.transformer
        tower.checkpointing |= bool(self.training.notes.get(RECOMPUTES)) and self.may_recompute
        if tower.checkpointing:
            self.training.notes[RECOMPUTES] = True
        layers = self.training.network.layers
        if why := self.why_not_graphs():
            self.say(f"training without the fast path: {why}")
        elif self.training.device.type == "cuda" and layers is not None and self.buckets is not None:
            self.enable_graphs(layers, self.buckets)
        return self

    def enable_graphs(self, layers: StackedAdapter, buckets: LengthBuckets) -> None:
        """Compile blocks and use graphs from here on, unless this version of torch lacks what they need."""
        ordered = self.training.params.deterministic
        missing: tuple[type[Exception], ...] = (ImportError, AttributeError, TypeError, *failures())
        try:
            network = compiled(self.training.network.denoiser, layers, self.caches, deterministic=ordered)
            self.compiled = self.settings.enter_context(network)
        except missing as error:
            self.fall_back(error)
            return
        self.graph_steps = GraphSteps(self.training, buckets, self.say, self.should_stop)

    def why_not_graphs(self) -> str:
        """Why a training on CUDA cannot use graphs; empty if it can, and on other devices."""
        if self.training.device.type != "cuda" or self.buckets is None:
            return ""
        if not self.wanted:
            return "fast_path is off"
        if self.training.network.layers is None:
            return "its layers run one by one"
        name = self.training.params.optimizer
        return "" if self.training.optimizer.rule.capturable else f"optimizer {name} needs the CPU in every step"

    def __exit__(self, *exception: object) -> None:
        if self.graph_steps is not None and self.graph_steps.buckets.frames_padded > 0:
            buckets = self.graph_steps.buckets
            self.say(
                f"of the frames computed, {buckets.padding_share:.1%} were padding up to prepared lengths, "
                f"{buckets.masked_share:.1%} lay behind clips shorter than the longest of their batch"
            )
        self.disable_graphs()

    def disable_graphs(self) -> None:
        """Make steps eagerly from now on, and free what was compiled and captured."""
        if self.graph_steps is not None:
            self.graph_steps.reset()
        self.graph_steps = None
        self.settings.close()

    def advance(self, batch: Batch) -> None:
        """Make one update from a batch on the CPU.

        Raises:
            Interrupted: a stop was requested while compiling; nothing was updated.
        """
        done, updates_before = False, self.training.optimizer.num_updates
        while not done:
            try:
                self.step(batch)
                done = True
            except failures() as error:
                if self.training.optimizer.num_updates != updates_before:
                    raise
                self.recover(error)
            # Retried outside the handler: an exception being handled keeps the tensors of the failed step alive.

    def step(self, batch: Batch) -> None:
        """Make one update in the fastest way available for this batch."""
        if self.graph_steps is None:
            self.training.advance(batch)
        elif not self.graph_steps.advance(batch):
            self.step_uncaptured(batch)

    def step_uncaptured(self, batch: Batch) -> None:
        """Make a step of a shape beyond `MAX_GRAPHS` eagerly."""
        assert self.compiled is not None, "graphs are used with compiled blocks only"
        if not self.has_reported_overflow:
            self.say(f"batches of more than {MAX_GRAPHS} shapes: further ones take the slower path")
            self.has_reported_overflow = True
        with self.compiled.uncompiled():
            self.training.advance(batch)

    def recover(self, error: Exception) -> None:
        """After a failed step, which changed nothing: use gradient checkpointing if memory was short, else eager steps.

        Raises:
            error: if the step was eager already.
        """
        tower = self.training.network.denoiser.model.transformer
        if is_out_of_memory(error) and self.may_recompute and not tower.checkpointing:
            self.say("device memory is short: gradient checkpointing is on from now (slower, same results)")
            tower.checkpointing = self.training.notes[RECOMPUTES] = True
            if self.graph_steps is not None:
                self.graph_steps.reset()
            return
        if self.graph_steps is None:
            raise error
        self.fall_back(error)

    def fall_back(self, error: Exception) -> None:
        """Print why there is no fast path, and continue without."""
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        self.say(f"training without the fast path ({type(error).__name__}: {reason[:200]})")
        self.disable_graphs()
