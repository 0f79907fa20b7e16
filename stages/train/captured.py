"""The fast way through a step on CUDA: compiled blocks, and the whole step replayed as one graph per batch length.

A step of this size is thousands of small kernels; launching them one by one takes the host longer than the device needs
for them. So the step (weights of all layers, forward, backward, optimiser) is recorded once for a length and replayed.
The host only copies each batch into the memory that the recording reads. The arithmetic is that of the plain step.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from stages.adapters._frozen import can_have_kernels
from stages.train.batches import Batch
from stages.train.compiling import compiled
from stages.train.kernels import compile_kernels
from stages.train.lengths import Buckets
from stages.train.network import loss_scale
from stages.train.parts import parts_of
from stages.train.watched import watched

if TYPE_CHECKING:
    from stages.train.loop import Training

# B clips, C latent channels, T frames, L prompt tokens, D conditioning width.

Result = TypeVar("Result")

WARM_UPS = 2
"""Runs before a recording: the first compiles, the second finds every lazily made thing there."""


@dataclass(kw_only=True)
class Recording:
    """What the device was told to do with a batch of one shape: a whole step, or one part of a step."""

    batch: Batch
    """What the recording reads: tensors that keep their place."""
    prompts_BLD: Tensor
    masks: list[Tensor]
    weight: Tensor
    """What the loss is multiplied by before the backward pass."""
    figures_3B: Tensor
    """What it writes: timestep, generated loss, context loss."""
    loss: Tensor
    norm: Tensor | None
    """Of the gradient; None where more parts follow."""
    gradients: list[Tensor]
    graph: torch.cuda.CUDAGraph


@dataclass(kw_only=True)
class Finishing:
    """The end of a step of several parts, as the device was told it."""

    loss: Tensor
    scale: Tensor
    """What the host writes before: what the parts add to the loss, and what they were multiplied by."""
    norm: Tensor
    gradients: list[Tensor]
    graph: torch.cuda.CUDAGraph


class CapturedSteps:
    """Makes the steps of a training. State lies where the plain step keeps it: either can go on from the other."""

    def __init__(
        self,
        training: Training,
        buckets: Buckets,
        say: Callable[[str], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`should_stop` is asked while a step is prepared, which takes longest."""
        self.training, self.buckets, self.say, self.should_stop = training, buckets, say, should_stop
        self.pool: Any = None
        self.forget()

    def forget(self) -> None:
        """Everything recorded so far."""
        self.recordings: dict[tuple[Any, ...], Recording] = {}
        self.finishing: Finishing | None = None
        self.pool = None
        self.training.optimizer.clear()

    def advance(self, batch: Batch) -> None:
        """One update from a batch on the CPU; does not wait for the device.

        Raises:
            Interrupted: asked to stop while the step was prepared; nothing was updated.
        """
        training = self.training
        parts = parts_of(batch, paired=training.params.optimal_transport)
        with training.looked_at():
            figures_3B, norm = self.whole(parts[0]) if len(parts) == 1 else self.in_parts(parts)
        training.history.note(figures_3B, norm)
        training.step += 1

    def whole(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A step of one part: one recording does all of it."""
        batch = self.buckets.filled(batch)
        recording = self.recording_for(batch, finishes=True)
        self.replay(recording, batch, loss_scale(batch, self.training.network.denoiser.dtype))
        assert recording.norm is not None, "a recording that finishes has the norm of its gradient"
        self.training.optimizer.gradients = recording.gradients
        return recording.figures_3B.clone(), recording.norm.clone()

    def in_parts(self, parts: list[Batch]) -> tuple[Tensor, Tensor]:
        """A step of several: each adds its gradient, then one more recording makes the update."""
        filled = [self.buckets.filled(part) for part in parts]
        recordings = [self.recording_for(part, finishes=False) for part in filled]
        finishing = self.finishing = self.finishing or self.recorded_end()
        scale = loss_scale(max(filled, key=lambda part: part.latents_BCT.numel()), self.training.network.denoiser.dtype)
        count = sum(len(part.clip_ids) for part in parts)
        torch._foreach_zero_(finishing.gradients)
        finishing.loss.zero_()
        finishing.scale.fill_(scale)
        figures = []
        for recording, part in zip(recordings, filled, strict=True):
            share = len(part.clip_ids) / count
            self.replay(recording, part, share * scale)
            finishing.loss.add_(recording.loss, alpha=share)
            figures.append(recording.figures_3B.clone())
        finishing.graph.replay()
        self.training.optimizer.gradients = finishing.gradients
        return torch.cat(figures, dim=1), finishing.norm.clone()

    def replay(self, recording: Recording, batch: Batch, weight: float) -> None:
        """Hand a batch to a recording, and let the device go through it."""
        recording.weight.fill_(weight)
        self.fill(recording, batch)
        recording.graph.replay()

    def recording_for(self, batch: Batch, *, finishes: bool) -> Recording:
        """The recording for batches of this shape, made if there is none yet."""
        key = (*batch.latents_BCT.shape, batch.all_real)
        if key not in self.recordings:
            self.recordings[key] = self.recorded(batch, finishes=finishes)
        return self.recordings[key]

    def fill(self, recording: Recording, batch: Batch) -> None:
        """Copy a batch to where the recording reads it, without waiting."""
        for name, place in device_tensors(recording.batch).items():
            place.copy_(getattr(batch, name).pin_memory(), non_blocking=True)
        conditioner = self.training.network.conditioner
        conditioner.pad_into(recording.prompts_BLD, batch.hidden)
        for place, mask in zip(recording.masks, self.masks(), strict=True):
            place.copy_(mask.pin_memory(), non_blocking=True)

    def masks(self) -> list[Tensor]:
        """Dropout masks of the next step, on the CPU."""
        training = self.training
        assert training.network.layers is not None, "only stacked adapters are captured"
        return training.network.layers.masks(training.mask_generator())

    def recorded(self, batch: Batch, *, finishes: bool) -> Recording:
        """Compile, warm up and record; parameters, moments and figures stay as they are."""
        started, training = time.perf_counter(), self.training
        layers = training.network.layers
        assert layers is not None, "only stacked adapters are captured"
        shape = f"{batch.latents_BCT.shape[-1]} frames{'' if batch.all_real else ', padded'}"
        self.say(f"preparing the fast path for {shape}")
        placed = batch.to(training.device)
        held: dict[str, Any] = {name: tensor.clone() for name, tensor in device_tensors(placed).items()}
        placed, prompts_BLD = replace(placed, **held), training.network.padded(batch)
        masks = [mask.to(training.device) for mask in self.masks()]
        layers.use_masks(masks)
        if layers.joins:
            with watched("compiling", self.say, self.should_stop):
                compile_kernels(training.network.denoiser, layers)
        with training.optimizer.refusing():
            recording = self._captured(placed, prompts_BLD, masks, finishes=finishes)
        self.say(f"fast path for {shape} ready after {time.perf_counter() - started:.0f} s")
        return recording

    def _captured(self, batch: Batch, prompts_BLD: Tensor, masks: list[Tensor], *, finishes: bool) -> Recording:
        training = self.training
        weight = torch.ones((), device=training.device)

        def work() -> tuple[Tensor, Tensor, Tensor | None]:
            if finishes:
                training.optimizer.clear()
            with training.network.ready():
                loss, figures_3B = training.loss_of(batch, prompts_BLD)
                (loss * weight).backward()
            return loss.detach(), figures_3B, training.optimizer.finish(loss.detach(), weight) if finishes else None

        if not finishes:
            self.keep_gradients()
        graph, (loss, figures_3B, norm) = self.told(work)
        return Recording(
            batch=batch,
            prompts_BLD=prompts_BLD,
            masks=masks,
            weight=weight,
            figures_3B=figures_3B,
            loss=loss,
            norm=None if norm is None else norm.detach(),
            gradients=list(training.optimizer.gradients),
            graph=graph,
        )

    def keep_gradients(self) -> None:
        """Gradients that every recorded part adds to, in memory that keeps its place."""
        for parameter in self.training.optimizer.trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def recorded_end(self) -> Finishing:
        """Record the update itself; nothing is changed by that."""
        training = self.training
        loss, scale = (torch.ones((), device=training.device) for _ in range(2))
        with training.optimizer.refusing():
            graph, norm = self.told(lambda: training.optimizer.finish(loss, scale))
        gradients = list(training.optimizer.gradients)
        return Finishing(loss=loss, scale=scale, norm=norm.detach(), gradients=gradients, graph=graph)

    def told(self, work: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
        """Warm up and record. Raises: Interrupted."""
        # What is left of computations on another stream would draw that stream into the recording.
        gc.collect()
        device = self.training.device
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream), watched("compiling", self.say, self.should_stop):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            result = work()
        self.pool = graph.pool()
        return graph, result


def device_tensors(batch: Batch) -> dict[str, Tensor]:
    """What of a batch lies on the device, prompts apart."""
    held: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


def failures() -> tuple[type[Exception], ...]:
    """What compiling or recording raises where something does not allow it; torch's compiler raises the first."""
    if not can_have_kernels():
        return RuntimeError, NotImplementedError
    from triton.errors import TritonError  # deferred: Triton comes with CUDA builds of torch

    return RuntimeError, NotImplementedError, TritonError


class Stepper:
    """Steps in the fastest way there is: captured on CUDA, else and after a failure one operation at a time.

    Which way is taken follows from the device and the network alone, never from how many steps are left: a training
    that was stopped goes on as it began.
    """

    def __init__(
        self,
        training: Training,
        buckets: Buckets | None,
        caches: Path,
        say: Callable[[str], None],
        *,
        may_recompute: bool = True,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Ways to step.

        Args:
            may_recompute: where memory turns out too short, compute blocks again in the backward pass.
            should_stop: asked while something is compiled, too.
        """
        self.training, self.say, self.buckets, self.caches = training, say, buckets, caches
        self.may_recompute, self.should_stop = may_recompute, should_stop
        self.settings = ExitStack()
        self.fast: CapturedSteps | None = None

    def __enter__(self) -> Stepper:
        layers = self.training.network.layers
        if why := self.why_plain():
            self.say(f"stepping without the fast path: {why}")
        elif self.training.device.type == "cuda" and layers is not None and self.buckets is not None:
            ordered = self.training.params.deterministic
            code = compiled(self.training.network.denoiser, layers, self.caches, deterministic=ordered)
            self.settings.enter_context(code)
            self.fast = CapturedSteps(self.training, self.buckets, self.say, self.should_stop)
        return self

    def why_plain(self) -> str:
        """What of a training on CUDA cannot be recorded; empty when nothing is in the way."""
        if self.training.device.type != "cuda" or self.buckets is None:
            return ""
        if self.training.network.layers is None:
            return "its layers are computed one by one"
        name = self.training.params.optimizer
        return "" if self.training.optimizer.rule.capturable else f"the host looks at every step of optimizer {name}"

    def __exit__(self, *exception: object) -> None:
        if self.fast is not None and self.fast.buckets.frames_padded > 0:
            buckets = self.fast.buckets
            self.say(
                f"of the frames worked on, {buckets.padding:.1%} were padding up to prepared lengths, "
                f"{buckets.unevenness:.1%} lay behind clips shorter than the longest of their batch"
            )
        self.plainly()

    def plainly(self) -> None:
        """From now on without what was prepared."""
        self.fast = None
        self.settings.close()

    def advance(self, batch: Batch) -> None:
        """One update from a batch on the CPU.

        Raises:
            Interrupted: asked to stop while it was prepared; nothing was updated.
        """
        done = False
        while not done:
            try:
                (self.training if self.fast is None else self.fast).advance(batch)
                done = True
            except failures() as error:
                self.recover(error)
            # Tried again only out here: an error that is being handled holds on to what the step had made.

    def recover(self, error: Exception) -> None:
        """Nothing of the failed step was kept: recompute blocks where memory was short, else take the plain way.

        Raises:
            error: that was the plain way.
        """
        tower = self.training.network.denoiser.model.transformer
        if isinstance(error, torch.OutOfMemoryError) and self.may_recompute and not tower.checkpointing:
            self.say("device memory is short: recomputing each block in the backward pass from now on")
            tower.checkpointing = True
            if self.fast is not None:
                self.fast.forget()
            return
        if self.fast is None:
            raise error
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        self.say(f"stepping without the fast path ({type(error).__name__}: {reason[:200]})")
        self.plainly()
