"""The fast way through a step on CUDA: compiled blocks, and the whole step replayed as one graph per batch length.

A step of this size is thousands of small kernels; launching them one by one takes the host longer than the device needs
for them. So the step (weights of all layers, forward, backward, optimiser) is recorded once for a length and replayed.
The host only copies each batch into the memory that the recording reads. The arithmetic is that of the plain step.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from stages.train.cuda_graph.interruptible import interruptible
from stages.train.cuda_graph.kernel_warmup import compile_kernels
from stages.train.dataset.batch import Batch, microbatches, tensor_fields
from stages.train.dataset.length_buckets import LengthBuckets
from stages.train.model.network import loss_scale, needs_loss_scale
from stages.train.training import Training

# B clips, C latent channels, T frames, L prompt tokens, D conditioning width.

Result = TypeVar("Result")

MAX_GRAPHS = 16
"""Batches by frames come in some forty shapes; a step whose shape is beyond these takes the plain way."""

ALIGNMENT = 256
"""Bytes that each tensor begins at a multiple of, as those that a device allocates do."""

WITHOUT = "--fast-path off goes without"

FIRST = -1
"""Priority of a stream; 0 is the usual one, and comes after it."""

WARM_UPS = 2
"""Runs before a recording: the first compiles, the second finds every lazily made thing there."""


@dataclass(kw_only=True)
class Placed:
    """What a recording reads: tensors that keep their place."""

    memory: Tensor
    """Where all but the prompts lie, packed as `GraphSteps.host_inputs` lists them."""
    batch: Batch
    prompts_BPE: Tensor
    masks: list[Tensor]
    weight: Tensor
    """What the loss is multiplied by before the backward pass."""


@dataclass(kw_only=True)
class Recording:
    """What the device was told to do with a batch of one shape: a whole step, or one part of a step."""

    placed: Placed
    figures_3B: Tensor
    """What it writes: timestep, generated loss, context loss."""
    loss: Tensor
    norm: Tensor | None
    """Of the gradient; None where more parts follow."""
    gradients: list[Tensor]
    """Where they lie until another recording runs; none where more parts follow."""
    graph: torch.cuda.CUDAGraph


@dataclass(kw_only=True)
class Finishing:
    """The end of a step of several parts, as the device was told it."""

    loss: Tensor
    scale: Tensor
    """What the host writes before: what the parts add to the loss, and what they were multiplied by."""
    norm: Tensor
    graph: torch.cuda.CUDAGraph


class GraphSteps:
    """Makes the steps of a training. State lies where the plain step keeps it: either can go on from the other."""

    def __init__(
        self,
        training: Training,
        buckets: LengthBuckets,
        say: Callable[[str], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`should_stop` is asked while a step is prepared, which takes longest."""
        self.training, self.buckets, self.say, self.should_stop = training, buckets, say, should_stop
        self.scaled = needs_loss_scale(training.network.denoiser.dtype)
        self.pool: Any = None
        self.streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None
        """For warm-ups and for recordings; None before the first."""
        self.forget()

    def forget(self) -> None:
        """Everything recorded so far."""
        self.recordings: dict[tuple[Any, ...], Recording] = {}
        self.finishing: Finishing | None = None
        self.pool = None
        self.gradients: list[Tensor] = []
        self.training.optimizer.gradients = []
        self.training.optimizer.zero_grad()

    def advance(self, batch: Batch) -> bool:
        """One update from a batch on the CPU; does not wait for the device.

        Returns:
            False where its shapes are new and enough shapes are recorded already: then nothing was done.

        Raises:
            Interrupted: asked to stop while the step was prepared; nothing was updated.
        """
        training = self.training
        parts = microbatches(batch, paired=training.params.optimal_transport)
        if len(self.recordings.keys() | {self.buckets.shape_of(part) for part in parts}) > MAX_GRAPHS:
            return False
        # Of the whole batch, as the plain step has it; a power of two, so it changes no digit of what it scales.
        scale = loss_scale(batch, training.network.denoiser.dtype)
        with training.updating():
            figures_3B, norm = self.whole(parts[0], scale) if len(parts) == 1 else self.in_parts(parts, scale)
        training.history.append(figures_3B, norm)
        training.step += 1
        return True

    def whole(self, batch: Batch, scale: float) -> tuple[Tensor, Tensor]:
        """A step of one part: one recording does all of it."""
        batch = self.buckets.padded(batch)
        recording = self.recording_for(batch, finishes=True)
        self.replay(recording, batch, scale)
        self.updated(recording.gradients)
        assert recording.norm is not None, "a recording that finishes has the norm of its gradient"
        return recording.figures_3B.clone(), recording.norm.clone()

    def updated(self, gradients: list[Tensor]) -> None:
        """A recording has made an update, as `Optimizer.finish` does."""
        optimizer = self.training.optimizer
        optimizer.num_updates += 1
        optimizer.gradients = gradients

    def in_parts(self, parts: list[Batch], scale: float) -> tuple[Tensor, Tensor]:
        """A step of several: each adds its gradient, then one more recording makes the update."""
        filled = [self.buckets.padded(part) for part in parts]
        recordings = [self.recording_for(part, finishes=False) for part in filled]
        finishing = self.finishing = self.finishing or self.recorded_end()
        count = sum(len(part.clip_ids) for part in parts)
        torch._foreach_zero_(self.gradients)
        finishing.loss.zero_()
        finishing.scale.fill_(scale)
        figures = []
        for recording, part in zip(recordings, filled, strict=True):
            share = len(part.clip_ids) / count
            self.replay(recording, part, share * scale)
            finishing.loss.add_(recording.loss, alpha=share)
            figures.append(recording.figures_3B.clone())
        finishing.graph.replay()
        self.updated(self.gradients)
        return torch.cat(figures, dim=1), finishing.norm.clone()

    def replay(self, recording: Recording, batch: Batch, weight: float) -> None:
        """Hand a batch to a recording, and let the device go through it."""
        self.fill(recording.placed, batch, weight)
        recording.graph.replay()

    def recording_for(self, batch: Batch, *, finishes: bool) -> Recording:
        """The recording for batches of this shape, made if there is none yet."""
        key = self.buckets.shape_of(batch)
        if key not in self.recordings:
            started = time.perf_counter()
            try:
                self.recordings[key] = self.recorded(batch, finishes=finishes)
            finally:
                self.training.preparation_seconds += time.perf_counter() - started
        return self.recordings[key]

    def placed(self, batch: Batch) -> Placed:
        """Memory on the device for batches of this shape; this one lies there."""
        told, network = self.host_inputs(batch, 1.0), self.training.network
        memory = pack(told).to(self.training.device)
        weight, *rest = views_into(memory, told)
        held: dict[str, Any] = {name: rest.pop(0) for name in tensor_fields(batch)}
        prompts_BPE = network.padded_prompts(batch)
        return Placed(memory=memory, batch=replace(batch, **held), prompts_BPE=prompts_BPE, masks=rest, weight=weight)

    def fill(self, placed: Placed, batch: Batch, weight: float) -> None:
        """Copy a batch to where a recording reads it, without waiting."""
        memory = placed.memory
        memory.copy_(pack(self.host_inputs(batch, weight), pinned=memory.is_cuda), non_blocking=True)
        self.training.network.conditioner.write_padded_prompts(placed.prompts_BPE, batch.hidden)

    def host_inputs(self, batch: Batch, weight: float) -> list[Tensor]:
        """What the device is told of the next step, on the CPU: weight of the loss, batch, dropout masks."""
        return [torch.tensor(weight), *tensor_fields(batch).values(), *self.masks()]

    def masks(self) -> list[Tensor]:
        """Dropout masks of the next step, on the CPU."""
        training = self.training
        assert training.network.layers is not None, "only stacked adapters are captured"
        return training.network.layers.dropout_masks(training.dropout_generator())

    def recorded(self, batch: Batch, *, finishes: bool) -> Recording:
        """Compile, warm up and record; parameters, moments and figures stay as they are."""
        started, training = time.perf_counter(), self.training
        layers = training.network.layers
        assert layers is not None, "only stacked adapters are captured"
        shape = f"{batch.latents_BCT.shape[-1]} frames{'' if batch.all_real else ', padded'}"
        self.say(f"preparing the fast path for {shape}")
        placed = self.placed(batch)
        layers.set_dropout_masks(placed.masks)
        if layers.joins_products:
            with interruptible("compiling", self.say, self.should_stop, WITHOUT):
                compile_kernels(training.network.denoiser, layers)
        with training.optimizer.discarding_updates():
            recording = self._captured(placed, finishes=finishes)
        self.say(f"fast path for {shape} ready after {time.perf_counter() - started:.0f} s")
        return recording

    def _captured(self, placed: Placed, *, finishes: bool) -> Recording:
        training, weight = self.training, placed.weight

        def work() -> tuple[Tensor, Tensor, Tensor | None]:
            if finishes:
                training.optimizer.zero_grad()
            with training.network.precomputed_weights():
                loss, figures_3B = training.forward_loss(placed.batch, placed.prompts_BPE)
                # What the gradient of loss * weight begins with.
                loss.backward(weight)
            if not finishes:
                return loss.detach(), figures_3B, None
            norm = training.optimizer.apply_gradients(loss.detach(), weight if self.scaled else 1.0)
            return loss.detach(), figures_3B, norm

        if not finishes:
            self.keep_gradients()
        graph, (loss, figures_3B, norm) = self.told(work)
        gradients = [unowned(gradient) for gradient in training.optimizer.gradients] if finishes else []
        if finishes:
            # Other recordings may have their memory, which held by every recording would come to gigabytes.
            training.optimizer.zero_grad()
        return Recording(
            placed=placed,
            figures_3B=figures_3B,
            loss=loss,
            norm=None if norm is None else norm.detach(),
            gradients=gradients,
            graph=graph,
        )

    def keep_gradients(self) -> None:
        """Memory that keeps its place, for every recorded part to add its gradients to."""
        trained = self.training.optimizer.trained
        self.gradients = self.gradients or [torch.zeros_like(parameter) for parameter in trained]
        for parameter, place in zip(trained, self.gradients, strict=True):
            parameter.grad = place

    def recorded_end(self) -> Finishing:
        """Record the update itself; nothing is changed by that."""
        training = self.training
        loss, scale = (torch.ones((), device=training.device) for _ in range(2))
        with training.optimizer.discarding_updates():
            graph, norm = self.told(lambda: training.optimizer.apply_gradients(loss, scale if self.scaled else 1.0))
        return Finishing(loss=loss, scale=scale, norm=norm.detach(), graph=graph)

    def told(self, work: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
        """Warm up and record. Raises: Interrupted."""
        # What is left of computations on another stream would draw that stream into the recording.
        gc.collect()
        device = self.training.device
        # The same for every recording: cuBLAS keeps memory of its own for every stream that it has met.
        warming, recording = self.streams = self.streams or _streams(device)
        warming.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(warming), interruptible("compiling", self.say, self.should_stop, WITHOUT):
                for _ in range(WARM_UPS):
                    work()
        finally:
            # Also after a stop: an update that is refused must be over before updates are no longer refused.
            torch.cuda.current_stream(device).wait_stream(warming)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=recording, capture_error_mode="thread_local"):
            result = work()
        self.pool = graph.pool()
        return graph, result


def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """For warm-ups and for recordings; what is recorded goes before what runs beside it (`_beside`)."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device, priority=FIRST)


class _Place:
    """Memory of a device, by the protocol that array libraries have for it (CUDA Array Interface, version 3)."""

    def __init__(self, tensor: Tensor) -> None:
        assert tensor.dtype == torch.float32, "gradients of an adapter"
        self.__cuda_array_interface__ = {
            "version": 3,
            "typestr": "<f4",
            "shape": tuple(tensor.shape),
            "strides": tuple(4 * stride for stride in tensor.stride()),
            "data": (tensor.data_ptr(), False),
        }


def unowned(tensor: Tensor) -> Tensor:
    """The same memory, which may be given to others all the same."""
    return torch.as_tensor(_Place(tensor), device=tensor.device) if tensor.is_cuda else tensor


def pack(tensors: Sequence[Tensor], *, pinned: bool = False) -> Tensor:
    """(bytes,) uint8 on the CPU: copies of these, one behind the other.

    Args:
        pinned: where a device may read it while the host goes on.
    """
    memory = torch.empty(sum(map(_aligned_bytes, tensors)), dtype=torch.uint8, pin_memory=pinned)
    for place, tensor in zip(views_into(memory, tensors), tensors, strict=True):
        place.copy_(tensor)
    return memory


def views_into(memory: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Where `pack` puts tensors of these shapes: views of the memory."""
    found, start = [], 0
    for tensor in like:
        found.append(memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        start += _aligned_bytes(tensor)
    return found


def _aligned_bytes(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
