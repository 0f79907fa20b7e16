"""The state of a training between two steps, and what one step does to it."""

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
from stages.train.record.layer_norms import NormProbe, is_due
from stages.train.record.metrics import MetricsHistory
from stages.train.rng import StepRng
from stages.train.stage import TrainParams


@dataclass
class Training:
    """A training between two steps."""

    network: Network
    optimizer: Optimizer
    history: MetricsHistory
    params: TrainParams
    device: torch.device
    notes: dict[str, Any]
    """Small JSON values kept in every checkpoint; `seconds` counts the time spent in steps."""
    step: int = 0
    """Updates made."""

    def advance(self, batch: Batch) -> None:
        """One update from a batch on the CPU."""
        scale = loss_scale(batch, self.network.denoiser.dtype)
        parts = microbatches(batch, paired=self.params.optimal_transport)
        with self.layer_norms_recorded():
            self.optimizer.zero_grad()
            found = [self.learn(part, len(part.clip_ids) / len(batch.clip_ids), scale) for part in parts]
            norm = self.optimizer.apply_gradients(torch.stack([loss for _, loss in found]).sum(), scale)
        self.history.append(torch.cat([figures_3B for figures_3B, _ in found], dim=1), norm.detach())
        self.step += 1

    def learn(self, part: Batch, share: float, scale: float) -> tuple[Tensor, Tensor]:
        """Forward and backward of a part of the step's clips; returns their figures (3, B) and their share of the loss.

        Every part has the same dropout masks, as the clips of one batch have.
        """
        with adapter_dropout(self.params, self.step, self.device):
            self.use_masks()
            # The backward too: a block computed again in it finds the weights that it was computed with.
            with self.network.ready():
                loss, figures_3B = self.forward_loss(part.to(self.device))
                (loss * (share * scale)).backward()
        return figures_3B, loss.detach() * share

    def forward_loss(self, batch: Batch, prompts_BPE: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Forward, inside `network.ready`: the loss, and of every clip its timestep and losses, (3, B).

        Args:
            prompts_BPE: as for `Network.velocity`.
        """
        # Of several parts the noise is dealt out already, in all of them together; dealing again inside one could
        # only find pairs that are as near.
        paired = self.params.optimal_transport and self.params.gradient_accumulation == 1
        losses = batch_losses(self.network, batch, paired=paired, prompts_BPE=prompts_BPE)
        total = losses.total(self.params.mask_loss_weight)
        figures = (batch.timestep_B, losses.generated_B.detach(), losses.context_B.detach())
        return total, torch.stack(figures)

    @contextmanager
    def layer_norms_recorded(self) -> Iterator[None]:
        """Around an update: looks at the layers, if that is due."""
        self.optimizer.begin_step(self.step)
        look = NormProbe(self.optimizer) if is_due(self.step) else None
        yield
        if look is not None:
            self.history.append_layer_norms(look.figures())

    def use_masks(self) -> None:
        """Give stacked layers the dropout masks of this step, drawn on the CPU."""
        layers = self.network.layers
        if layers is not None and layers.dropout > 0:
            layers.set_dropout_masks([mask.to(self.device) for mask in layers.dropout_masks(self.dropout_generator())])

    def dropout_generator(self) -> torch.Generator:
        """Where the dropout masks of the next step come from."""
        return StepRng(self.params.seed).torch_generator("adapter dropout", self.step)

    def as_checkpoint(self) -> Checkpoint:
        """All of it, on the CPU."""
        return Checkpoint(
            step=self.step,
            adapter=self.network.adapter.state(),
            optimizer=self.optimizer.state(),
            history=self.history.state(),
            notes=dict(self.notes),
        )

    def restore(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.network.adapter.load(saved.adapter, f"checkpoint of step {saved.step}")
        self.optimizer.load(saved.optimizer)
        self.history = MetricsHistory.from_state(saved.history)
        self.notes = dict(saved.notes)
        self.step = saved.step


@contextmanager
def adapter_dropout(params: TrainParams, step: int, device: torch.device) -> Iterator[None]:
    """Adapters draw dropout masks from torch's global generators: seed those for one step, and put them back."""
    if params.adapter_dropout == 0:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(StepRng(params.seed).torch_generator("adapter dropout", step).initial_seed())
        yield
