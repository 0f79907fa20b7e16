"""Training steps as CUDA graphs: a whole step is captured once per batch shape and replayed for every batch of it.

A step of this size is thousands of small kernels; launching them one by one takes the host longer than the device needs
for them. So the step (weights of all layers, forward, backward, optimiser) is captured once per shape and replayed. The
host only copies each batch into the memory that the graph reads. The arithmetic is that of the eager step.
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

# B clips, P prompt tokens, E conditioning width: the legend of ARCHITECTURE.md.

Result = TypeVar("Result")

MAX_GRAPHS = 16
"""Batches by frames come in some forty shapes; steps of shapes beyond these are made eagerly."""

ALIGNMENT = 256
"""Each packed tensor starts at a multiple of so many bytes, as CUDA allocations do."""

SKIP_HINT = "--fast-path off trains without"

HIGH_PRIORITY = -1
"""Priority of a CUDA stream; 0 is the default and lower."""

WARMUP_RUNS = 2
"""Runs before a capture: the first compiles, the second finds everything that is created lazily."""


@dataclass(kw_only=True)
class StaticInputs:
    """Inputs of a graph: tensors that stay at one address, into which each batch is copied."""

    memory: Tensor
    """All inputs but the prompts, packed in the order of `GraphSteps.host_inputs`."""
    batch: Batch
    prompts_BPE: Tensor
    masks: list[Tensor]
    weight: Tensor
    """What the loss is multiplied by before the backward pass."""


@dataclass(kw_only=True)
class StepGraph:
    """A captured step of one batch shape: all of it, or forward and backward of one microbatch."""

    inputs: StaticInputs
    figures_3B: Tensor
    """Written by the graph: timestep, generated loss and context loss of each clip."""
    loss: Tensor
    norm: Tensor | None
    """Norm of the gradient; None for a microbatch."""
    gradients: list[Tensor]
    """Gradients, valid until another graph is replayed; empty for a microbatch."""
    graph: torch.cuda.CUDAGraph


@dataclass(kw_only=True)
class UpdateGraph:
    """The captured update of a step of several microbatches."""

    loss: Tensor
    scale: Tensor
    """Written by the host before: the loss of the step, and what it was multiplied by."""
    norm: Tensor
    graph: torch.cuda.CUDAGraph


class GraphSteps:
    """Makes steps by replaying graphs. State is kept where the eager step has it, so the two can alternate."""

    def __init__(
        self,
        training: Training,
        buckets: LengthBuckets,
        say: Callable[[str], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Graphs are captured when they are first needed; `should_stop` is polled meanwhile, as that takes longest."""
        self.training, self.buckets, self.say, self.should_stop = training, buckets, say, should_stop
        self.scaled = needs_loss_scale(training.network.denoiser.dtype)
        self.pool: Any = None
        self.streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None
        """For warm-up runs and for captures; None before the first."""
        self.reset()

    def reset(self) -> None:
        """Drop all graphs and their memory."""
        self.graphs: dict[tuple[Any, ...], StepGraph] = {}
        self.update_graph: UpdateGraph | None = None
        self.pool = None
        self.gradients: list[Tensor] = []
        self.training.optimizer.gradients = []
        self.training.optimizer.zero_grad()

    def advance(self, batch: Batch) -> bool:
        """Make one update from a batch on the CPU, without waiting for the device.

        Returns:
            False, with nothing done, if this would capture more than `MAX_GRAPHS` graphs.

        Raises:
            Interrupted: a stop was requested during a capture; nothing was updated.
        """
        training = self.training
        parts = microbatches(batch, paired=training.params.optimal_transport)
        if len(self.graphs.keys() | {self.buckets.shape_of(part) for part in parts}) > MAX_GRAPHS:
            return False
        # From the whole batch, as in the eager step; a power of two, so it rounds nothing.
        scale = loss_scale(batch, training.network.denoiser.dtype)
        with training.updating():
            figures_3B, norm = (
                self.whole_step(parts[0], scale) if len(parts) == 1 else self.accumulated_step(parts, scale)
            )
        training.history.append(figures_3B, norm)
        training.step += 1
        return True

    def whole_step(self, batch: Batch, scale: float) -> tuple[Tensor, Tensor]:
        """A step of one microbatch: one graph does all of it. Returns figures_3B and the gradient's norm."""
        batch = self.buckets.padded(batch)
        graph = self.graph_for(batch, with_update=True)
        self.replay(graph, batch, scale)
        self.note_update(graph.gradients)
        assert graph.norm is not None, "a graph with the update has the norm of its gradient"
        return graph.figures_3B.clone(), graph.norm.clone()

    def note_update(self, gradients: list[Tensor]) -> None:
        """Note on the host that a graph has made an update, as `Optimizer.apply_gradients` does."""
        optimizer = self.training.optimizer
        optimizer.num_updates += 1
        optimizer.gradients = gradients

    def accumulated_step(self, parts: list[Batch], scale: float) -> tuple[Tensor, Tensor]:
        """A step of several microbatches: each adds its gradient, then one more graph makes the update."""
        padded = [self.buckets.padded(part) for part in parts]
        graphs = [self.graph_for(part, with_update=False) for part in padded]
        update = self.update_graph = self.update_graph or self.capture_update()
        count = sum(len(part.clip_ids) for part in parts)
        torch._foreach_zero_(self.gradients)
        update.loss.zero_()
        update.scale.fill_(scale)
        figures = []
        for graph, part in zip(graphs, padded, strict=True):
            share = len(part.clip_ids) / count
            self.replay(graph, part, share * scale)
            update.loss.add_(graph.loss, alpha=share)
            figures.append(graph.figures_3B.clone())
        update.graph.replay()
        self.note_update(self.gradients)
        return torch.cat(figures, dim=1), update.norm.clone()

    def replay(self, graph: StepGraph, batch: Batch, weight: float) -> None:
        """Copy a batch into the inputs of a graph and replay it."""
        self.copy_inputs(graph.inputs, batch, weight)
        graph.graph.replay()

    def graph_for(self, batch: Batch, *, with_update: bool) -> StepGraph:
        """The graph for batches of this shape, captured if there is none yet."""
        key = self.buckets.shape_of(batch)
        if key not in self.graphs:
            started = time.perf_counter()
            try:
                self.graphs[key] = self.prepare_graph(batch, with_update=with_update)
            finally:
                self.training.preparation_seconds += time.perf_counter() - started
        return self.graphs[key]

    def static_inputs(self, batch: Batch) -> StaticInputs:
        """Device memory for batches of this shape, with this one in it."""
        values, network = self.host_inputs(batch, 1.0), self.training.network
        memory = pack(values).to(self.training.device)
        weight, *rest = views_into(memory, values)
        held: dict[str, Any] = {name: rest.pop(0) for name in tensor_fields(batch)}
        prompts_BPE = network.padded_prompts(batch)
        return StaticInputs(
            memory=memory, batch=replace(batch, **held), prompts_BPE=prompts_BPE, masks=rest, weight=weight
        )

    def copy_inputs(self, inputs: StaticInputs, batch: Batch, weight: float) -> None:
        """Copy a batch to where a graph reads it, without waiting."""
        memory = inputs.memory
        memory.copy_(pack(self.host_inputs(batch, weight), pinned=memory.is_cuda), non_blocking=True)
        self.training.network.conditioner.write_padded_prompts(inputs.prompts_BPE, batch.hidden)

    def host_inputs(self, batch: Batch, weight: float) -> list[Tensor]:
        """Host-side inputs of the next graph replay: weight of the loss, batch, dropout masks."""
        return [torch.tensor(weight), *tensor_fields(batch).values(), *self.dropout_masks()]

    def dropout_masks(self) -> list[Tensor]:
        """Dropout masks of the next step, on the CPU."""
        training = self.training
        assert training.network.layers is not None, "only stacked adapters are captured"
        return training.network.layers.dropout_masks(training.dropout_generator())

    def prepare_graph(self, batch: Batch, *, with_update: bool) -> StepGraph:
        """Compile, warm up and capture; parameters, moments and metrics stay as they are."""
        started, training = time.perf_counter(), self.training
        layers = training.network.layers
        assert layers is not None, "only stacked adapters are captured"
        shape = f"{batch.latents_BCT.shape[-1]} frames{'' if batch.all_real else ', padded'}"
        self.say(f"preparing the fast path for {shape}")
        inputs = self.static_inputs(batch)
        layers.set_dropout_masks(inputs.masks)
        if layers.joins_products:
            with interruptible("compiling", self.say, self.should_stop, SKIP_HINT):
                compile_kernels(training.network.denoiser, layers)
        with training.optimizer.discarding_updates():
            graph = self._capture_step(inputs, with_update=with_update)
        self.say(f"fast path for {shape} ready after {time.perf_counter() - started:.0f} s")
        return graph

    def _capture_step(self, inputs: StaticInputs, *, with_update: bool) -> StepGraph:
        training, weight = self.training, inputs.weight

        def step() -> tuple[Tensor, Tensor, Tensor | None]:
            if with_update:
                training.optimizer.zero_grad()
            with training.network.precomputed_weights():
                loss, figures_3B = training.forward_loss(inputs.batch, inputs.prompts_BPE)
                # `weight` is the incoming gradient: this is the backward pass of loss * weight.
                loss.backward(weight)
            if not with_update:
                return loss.detach(), figures_3B, None
            norm = training.optimizer.apply_gradients(loss.detach(), weight if self.scaled else 1.0)
            return loss.detach(), figures_3B, norm

        if not with_update:
            self.share_gradients()
        graph, (loss, figures_3B, norm) = self.capture(step)
        gradients = [unowned_view(gradient) for gradient in training.optimizer.gradients] if with_update else []
        if with_update:
            # Other graphs may reuse their memory, which kept by every graph would come to gigabytes.
            training.optimizer.zero_grad()
        return StepGraph(
            inputs=inputs,
            figures_3B=figures_3B,
            loss=loss,
            norm=None if norm is None else norm.detach(),
            gradients=gradients,
            graph=graph,
        )

    def share_gradients(self) -> None:
        """Give parameters gradients at a fixed address, to which the graphs of all microbatches add theirs."""
        trained = self.training.optimizer.trained
        self.gradients = self.gradients or [torch.zeros_like(parameter) for parameter in trained]
        for parameter, gradient in zip(trained, self.gradients, strict=True):
            parameter.grad = gradient

    def capture_update(self) -> UpdateGraph:
        """Capture the update of accumulated gradients; nothing is changed by that."""
        training = self.training
        loss, scale = (torch.ones((), device=training.device) for _ in range(2))
        with training.optimizer.discarding_updates():
            graph, norm = self.capture(lambda: training.optimizer.apply_gradients(loss, scale if self.scaled else 1.0))
        return UpdateGraph(loss=loss, scale=scale, norm=norm.detach(), graph=graph)

    def capture(self, work: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
        """Warm up and capture; returns the graph and the tensors that it writes. Raises: Interrupted."""
        # Garbage of computations on another stream would draw that stream into the capture.
        gc.collect()
        device = self.training.device
        # The same streams for every capture: cuBLAS keeps a workspace for every stream that it has seen.
        warmup, capturing = self.streams = self.streams or _streams(device)
        warmup.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(warmup), interruptible("compiling", self.say, self.should_stop, SKIP_HINT):
                for _ in range(WARMUP_RUNS):
                    work()
        finally:
            # Also after a stop: discarded updates must have run before updates are applied again.
            torch.cuda.current_stream(device).wait_stream(warmup)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=capturing, capture_error_mode="thread_local"):
            result = work()
        self.pool = graph.pool()
        return graph, result


def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Streams for warm-up runs and captures; captured work goes before that on side streams (`side_streams`)."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device, priority=HIGH_PRIORITY)


class _CudaArray:
    """Device memory of a tensor, by the CUDA Array Interface, version 3."""

    def __init__(self, tensor: Tensor) -> None:
        assert tensor.dtype == torch.float32, "gradients of an adapter are float32"
        self.__cuda_array_interface__ = {
            "version": 3,
            "typestr": "<f4",
            "shape": tuple(tensor.shape),
            "strides": tuple(4 * stride for stride in tensor.stride()),
            "data": (tensor.data_ptr(), False),
        }


def unowned_view(tensor: Tensor) -> Tensor:
    """A view that does not keep its memory allocated."""
    return torch.as_tensor(_CudaArray(tensor), device=tensor.device) if tensor.is_cuda else tensor


def pack(tensors: Sequence[Tensor], *, pinned: bool = False) -> Tensor:
    """(bytes,) uint8 on the CPU: copies of the tensors one behind the other, so that one transfer moves all of them.

    Args:
        pinned: page-locked, so that a device can read it while the host continues.
    """
    memory = torch.empty(sum(map(_aligned_bytes, tensors)), dtype=torch.uint8, pin_memory=pinned)
    for view, tensor in zip(views_into(memory, tensors), tensors, strict=True):
        view.copy_(tensor)
    return memory


def views_into(memory: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of the memory where `pack` puts tensors of these shapes."""
    found, start = [], 0
    for tensor in like:
        found.append(memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        start += _aligned_bytes(tensor)
    return found


def _aligned_bytes(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
