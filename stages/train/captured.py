"""The fast way through a step on CUDA: compiled blocks, and the whole step replayed as one graph per batch length.

A step of this size is thousands of small kernels; launching them one by one takes the host longer than the device needs
for them. So the step (weights of all layers, forward, backward, optimiser) is recorded once for a length and replayed.
The host only copies each batch into the memory that the recording reads. The arithmetic is that of the plain step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.adapters._together import Together, adapted_weight, stacked_product
from stages.models._nets.attention import masked_attention, replace_attention
from stages.models._nets.fused import fused_attention
from stages.models._nets.transformer import Denoiser, each_module, run_block
from stages.train.batches import Batch
from stages.train.lengths import Buckets

if TYPE_CHECKING:
    from stages.train.loop import Training

# B clips, C latent channels, T frames, L prompt tokens, D conditioning width.

WARM_UPS = 2
"""Runs before a recording: the first compiles, the second finds every lazily made thing there."""


@dataclass(kw_only=True)
class Recording:
    """A step as the device was told it, for one shape of batch."""

    batch: Batch
    """What the recording reads: tensors that keep their place."""
    prompts_BLD: Tensor
    masks: list[Tensor]
    figures_3B: Tensor
    """What it writes: timestep, generated loss, context loss."""
    norm: Tensor
    graph: torch.cuda.CUDAGraph


class CapturedSteps:
    """Makes the steps of a training. State lies where the plain step keeps it: either can go on from the other."""

    def __init__(self, training: Training, buckets: Buckets, say: Callable[[str], None]) -> None:
        self.training, self.buckets, self.say = training, buckets, say
        self.recordings: dict[tuple[Any, ...], Recording] = {}
        self.pool: Any = None

    def advance(self, batch: Batch) -> None:
        """One update from a batch on the CPU; does not wait for the device."""
        training = self.training
        batch = self.buckets.filled(batch)
        key = (*batch.latents_BCT.shape, batch.all_real)
        if key not in self.recordings:
            self.recordings[key] = self.recorded(batch)
        recording = self.recordings[key]
        self.fill(recording, batch)
        recording.graph.replay()
        training.history.note(recording.figures_3B.clone(), recording.norm.clone())
        training.step += 1

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

    def recorded(self, batch: Batch) -> Recording:
        """Compile, warm up and record; parameters, moments and figures stay as they are."""
        started, training = time.perf_counter(), self.training
        shape = f"{batch.latents_BCT.shape[-1]} frames{'' if batch.all_real else ', padded'}"
        self.say(f"preparing the fast path for {shape}")
        placed = batch.to(training.device)
        held: dict[str, Any] = {name: tensor.clone() for name, tensor in device_tensors(placed).items()}
        placed, prompts_BLD = replace(placed, **held), training.network.padded(batch)
        masks = [mask.to(training.device) for mask in self.masks()]
        assert training.network.layers is not None
        training.network.layers.use_masks(masks)
        with training.optimizer.refusing():
            recording = self._captured(placed, prompts_BLD, masks)
        self.say(f"fast path for {shape} ready after {time.perf_counter() - started:.0f} s")
        return recording

    def _captured(self, batch: Batch, prompts_BLD: Tensor, masks: list[Tensor]) -> Recording:
        training = self.training
        stream = torch.cuda.Stream(training.device)
        stream.wait_stream(torch.cuda.current_stream(training.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                training.update(batch, prompts_BLD)
        torch.cuda.current_stream(training.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            losses, norm = training.update(batch, prompts_BLD)
            figures_3B = torch.stack([batch.timestep_B, losses.generated_B.detach(), losses.context_B.detach()])
        self.pool = graph.pool()
        return Recording(
            batch=batch, prompts_BLD=prompts_BLD, masks=masks, figures_3B=figures_3B, norm=norm.detach(), graph=graph
        )


def device_tensors(batch: Batch) -> dict[str, Tensor]:
    """What of a batch lies on the device, prompts apart."""
    held: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


@contextmanager
def compiled(denoiser: Denoiser, layers: Together, caches: Path | None = None) -> Iterator[None]:
    """Within, blocks run compiled, and what all blocks have in common is computed for all at once.

    One compilation per shape of batch serves all blocks.

    Args:
        caches: where compiled code is kept between runs.
    """
    if caches is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(caches)
    tower = denoiser.model.transformer
    tower.run_block = torch.compile(run_block, dynamic=False)
    tower.each = layers.each
    tower.checkpoint_options = {"preserve_rng_state": False}  # nothing is drawn inside a block
    layers.run = torch.compile(adapted_weight, dynamic=True)
    layers.multiply = torch.compile(stacked_product, dynamic=False)
    if denoiser.dtype != torch.float32:
        replace_attention(denoiser, fused_attention)
    try:
        with one_program_for_all():
            yield
    finally:
        replace_attention(denoiser, masked_attention)
        tower.run_block, tower.each, tower.checkpoint_options = run_block, each_module, {}
        layers.run, layers.multiply = adapted_weight, stacked_product


FAILURES = (RuntimeError, NotImplementedError)
"""What compiling or recording raises where something does not allow it; errors of torch's compiler are among them."""


class Stepper:
    """Steps in the fastest way there is: captured on CUDA, else and after a failure one operation at a time.

    Which way is taken follows from the device and the network alone, never from how many steps are left: a training
    that was stopped goes on as it began.
    """

    def __init__(self, training: Training, buckets: Buckets | None, caches: Path, say: Callable[[str], None]) -> None:
        self.training, self.say, self.buckets, self.caches = training, say, buckets, caches
        self.settings = ExitStack()
        self.fast: CapturedSteps | None = None

    def __enter__(self) -> Stepper:
        layers = self.training.network.layers
        if self.training.device.type == "cuda" and layers is not None and self.buckets is not None:
            self.settings.enter_context(compiled(self.training.network.denoiser, layers, self.caches))
            self.fast = CapturedSteps(self.training, self.buckets, self.say)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.fast is not None and self.fast.buckets.frames_padded > 0:
            self.say(f"{self.fast.buckets.padding:.1%} of the frames worked on were padding up to prepared lengths")
        self.plainly()

    def plainly(self) -> None:
        """From now on without what was prepared."""
        self.fast = None
        self.settings.close()

    def advance(self, batch: Batch) -> None:
        """One update from a batch on the CPU."""
        if self.fast is not None:
            try:
                return self.fast.advance(batch)
            except FAILURES as error:
                self.recover(error)
                return self.advance(batch)
        return self.training.advance(batch.to(self.training.device))

    def recover(self, error: Exception) -> None:
        """Nothing of the failed step was kept: recompute blocks where memory was short, else take the plain way."""
        tower = self.training.network.denoiser.model.transformer
        assert self.fast is not None
        if isinstance(error, torch.OutOfMemoryError) and not tower.checkpointing:
            self.say("device memory is short: recomputing each block in the backward pass from now on")
            tower.checkpointing = True
            self.fast.recordings.clear()
            self.fast.pool = None
            return
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        self.say(f"stepping without the fast path ({type(error).__name__}: {reason[:200]})")
        self.plainly()


@contextmanager
def one_program_for_all() -> Iterator[None]:
    """Compiler settings: groups of layers of any sizes share a program, blocks of all lengths keep theirs."""
    import torch._dynamo  # deferred: compiling is for CUDA only
    import torch._inductor.config as inductor
    from torch.fx.experimental import _config as symbolic

    dynamo: Any = torch._dynamo.config
    # Programs chosen by the clock could differ between two runs, and with them the last bits.
    ordered: Any = inductor.patch(deterministic=True) if hasattr(inductor, "deterministic") else nullcontext()
    with (
        ordered,
        dynamo.patch(
            recompile_limit=64,
            # Otherwise a parameter's size is taken for a constant ...
            force_parameter_static_shapes=False,
            force_nn_module_property_static_shapes=False,
        ),
    ):
        # ... and sizes that happen to be equal in one group for always equal.
        duck_shape, symbolic.use_duck_shape = symbolic.use_duck_shape, False
        try:
            yield
        finally:
            symbolic.use_duck_shape = duck_shape
