"""A training between two steps: network, optimiser, metrics; and one eager step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.train.dataset.batch import Batch, microbatches
from stages.train.model.network import Network, batch_losses, loss_scale
from stages.train.optim.optimizer import Optimizer
from stages.train.record.checkpoint import Checkpoint
from stages.train.record.layer_norms import NormRecorder, is_due
from stages.train.record.metrics import MetricsHistory
from stages.train.rng import StepRng
from stages.train.stage import TrainParams


@dataclass
class Training:
    """State of a training after `step` updates."""

    network: Network
    optimizer: Optimizer
    history: MetricsHistory
    params: TrainParams
    device: torch.device
    notes: dict[str, Any]
    """Small JSON values kept in every checkpoint; `seconds` counts the time spent in steps."""
    step: int = 0
    """Updates made."""
    preparation_seconds: float = 0.0
    """Spent by this process in compiling and capturing steps."""

    def advance(self, batch: Batch) -> None:
        """Make one update from a batch on the CPU."""
        scale = loss_scale(batch, self.network.denoiser.dtype)
        parts = microbatches(batch, paired=self.params.optimal_transport)
        with self.updating():
            self.optimizer.zero_grad()
            results = [self.forward_backward(part, len(part.clip_ids) / len(batch.clip_ids), scale) for part in parts]
            norm = self.optimizer.apply_gradients(torch.stack([loss for _, loss in results]).sum(), scale)
        self.history.append(torch.cat([figures_3B for figures_3B, _ in results], dim=1), norm.detach())
        self.step += 1

    def forward_backward(self, batch: Batch, share: float, scale: float) -> tuple[Tensor, Tensor]:
        """Forward and backward pass of one microbatch.

        Every microbatch has the same dropout masks, as the clips of one batch have.

        Args:
            share: of the step's clips that are in this microbatch.
            scale: multiplies the loss before the backward pass.

        Returns:
            figures_3B: timestep, generated loss and context loss of each clip.
            loss: the microbatch's share of the step's loss.
        """
        with seeded_adapter_dropout(self.params, self.step, self.device):
            self.set_dropout_masks()
            # The backward pass too: a checkpointed block is recomputed in it with the same weights.
            with self.network.precomputed_weights():
                loss, figures_3B = self.forward_loss(batch.to(self.device))
                (loss * (share * scale)).backward()
        return figures_3B, loss.detach() * share

    def forward_loss(self, batch: Batch, prompts_BPE: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Forward pass, to be called within `network.precomputed_weights`.

        Args:
            prompts_BPE: as for `Network.velocity`.

        Returns:
            loss: mean over the clips.
            figures_3B: timestep, generated loss and context loss of each clip.
        """
        # Noise of several microbatches is paired already, over all of them; pairing again within one of them could
        # only find pairs that are as close.
        paired = self.params.optimal_transport and self.params.gradient_accumulation == 1
        losses = batch_losses(self.network, batch, paired=paired, prompts_BPE=prompts_BPE)
        total = losses.total(self.params.mask_loss_weight)
        figures = (batch.timestep_B, losses.generated_B.detach(), losses.context_B.detach())
        return total, torch.stack(figures)

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Around an update: sets its learning rate, and records norms per group of layers if they are due."""
        self.optimizer.begin_step(self.step)
        recorder = NormRecorder(self.optimizer) if is_due(self.step) else None
        yield
        if recorder is not None:
            self.history.append_layer_norms(recorder.norms())

    def set_dropout_masks(self) -> None:
        """Give stacked layers the dropout masks of this step, drawn on the CPU."""
        layers = self.network.layers
        if layers is not None and layers.dropout > 0:
            layers.set_dropout_masks([mask.to(self.device) for mask in layers.dropout_masks(self.dropout_generator())])

    def dropout_generator(self) -> torch.Generator:
        """Generator of the dropout masks of the next step."""
        return StepRng(self.params.seed).torch_generator("adapter dropout", self.step)

    def as_checkpoint(self) -> Checkpoint:
        """The whole state, on the CPU."""
        return Checkpoint(
            step=self.step,
            adapter=self.network.adapter.state(),
            optimizer=self.optimizer.state(),
            history=self.history.state(),
            notes=dict(self.notes),
        )

    def restore(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint."""
        self.network.adapter.load(saved.adapter, f"checkpoint of step {saved.step}")
        self.optimizer.load(saved.optimizer)
        self.history = MetricsHistory.from_state(saved.history)
        self.notes = dict(saved.notes)
        self.step = saved.step


@contextmanager
def seeded_adapter_dropout(params: TrainParams, step: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for one step and restore them: unstacked adapters draw dropout from those."""
    if params.adapter_dropout == 0:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(StepRng(params.seed).torch_generator("adapter dropout", step).initial_seed())
        yield
