"""Training metrics: a row per clip and step, a row per step, and every 100 steps a row per group of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stages.train.optim.lr_schedule import learning_rate
from stages.train.record.layer_norms import RECORD_EVERY, LayerRow, is_due
from stages.train.stage import TrainParams

LOSS_WINDOW = 50
"""Steps that the final and the best loss are means over: losses of single steps vary with their timesteps."""


@dataclass(frozen=True, kw_only=True)
class ClipRow:
    """One clip in one step (metrics.parquet)."""

    step: int
    """1 is the first."""
    clip_id: str
    crop_start: int
    """First sample of the excerpt inside the clip."""
    timestep: float
    loss: float
    """Loss as it counts in the step: generated_loss, plus context_loss times its weight."""
    generated_loss: float
    context_loss: float


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One step (steps.parquet)."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    """Norm before clipping."""


@dataclass
class MetricsHistory:
    """Metrics of every step so far. New ones stay on the device until they are read, so that no step waits for it."""

    clip_figures: np.ndarray
    """(clips of all steps, 3) float32: timestep, generated loss, context loss, in the order seen."""
    clips_per_step: np.ndarray
    """(steps,) int64."""
    gradient_norms: np.ndarray
    """(steps,) float32."""
    layer_norms: np.ndarray
    """(records, groups of layers, 3) float32: norms of gradient, update and values, every `RECORD_EVERY` steps."""
    _pending: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _pending_layer_norms: list[Tensor] = field(default_factory=list)

    @classmethod
    def empty(cls, num_groups: int = 0) -> MetricsHistory:
        """A history of no steps."""
        zeros = lambda *shape: np.zeros(shape, dtype=np.float32)  # noqa: E731 - short for this function only
        return cls(zeros(0, 3), np.zeros(0, dtype=np.int64), zeros(0), zeros(0, num_groups, 3))

    def append(self, figures_3B: Tensor, gradient_norm: Tensor) -> None:
        """Add one step: timestep, generated loss and context loss of its clips. The tensors must not change later."""
        self._pending.append((figures_3B, gradient_norm))

    def append_layer_norms(self, norms: Tensor) -> None:
        """Add one record of norms, (groups, 3)."""
        self._pending_layer_norms.append(norms)

    def flush(self) -> None:
        """Copy pending metrics to the host."""
        if self._pending:
            figures, norms = zip(*self._pending, strict=True)
            counts = np.array([figures_3B.shape[1] for figures_3B in figures], dtype=np.int64)
            self.clip_figures = np.concatenate([self.clip_figures, _on_host(torch.cat(figures, dim=1).T)])
            self.clips_per_step = np.concatenate([self.clips_per_step, counts])
            self.gradient_norms = np.concatenate([self.gradient_norms, _on_host(torch.stack(norms))])
            self._pending = []
        if self._pending_layer_norms:
            self.layer_norms = np.concatenate([self.layer_norms, _on_host(torch.stack(self._pending_layer_norms))])
            self._pending_layer_norms = []

    def losses(self, context_weight: float, last: int = 0) -> np.ndarray:
        """(steps,) float64 loss of every flushed step, or of the `last` ones: the mean over its clips."""
        counts = self.clips_per_step[-last:]
        figures = self.clip_figures[len(self.clip_figures) - counts.sum() :].astype(np.float64)
        per_clip = figures[:, 1] + context_weight * figures[:, 2]
        return np.add.reduceat(per_clip, starts_of(counts)) / counts if len(counts) else np.zeros(0)

    def by_step(self) -> list[np.ndarray]:
        """Clip figures of every flushed step, (clips, 3) each."""
        return np.split(self.clip_figures, np.cumsum(self.clips_per_step)[:-1]) if len(self.clips_per_step) else []

    def first_non_finite(self) -> tuple[int, str]:
        """Number (from 0) of the first flushed step with a non-finite figure, and which one: `loss` or `gradient`."""
        loss_is_finite = np.array([np.isfinite(figures).all() for figures in self.by_step()])
        first = int(np.argmin(loss_is_finite & np.isfinite(self.gradient_norms)))
        return first, "gradient" if loss_is_finite[first] else "loss"

    def truncate(self, num_steps: int) -> None:
        """Drop everything after the first `num_steps` steps."""
        self.clips_per_step, self.gradient_norms = self.clips_per_step[:num_steps], self.gradient_norms[:num_steps]
        self.clip_figures = self.clip_figures[: self.clips_per_step.sum()]
        self.layer_norms = self.layer_norms[: sum(is_due(step) for step in range(num_steps))]

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint."""
        self.flush()
        return {key: torch.from_numpy(getattr(self, name)) for key, name in _CHECKPOINT_KEYS.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> MetricsHistory:
        """The history whose `state` this is."""
        figures, counts, norms, layers = (state[key].numpy() for key in _CHECKPOINT_KEYS)
        return cls(figures, counts, norms, layers)


_CHECKPOINT_KEYS = {
    "figures_N3": "clip_figures",
    "counts_S": "clips_per_step",
    "norms_S": "gradient_norms",
    "layers_RG3": "layer_norms",
}


def _on_host(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.float().cpu().numpy()
    return array


def starts_of(counts: np.ndarray) -> np.ndarray:
    """Index of the first clip of each step."""
    return np.cumsum(counts) - counts


def window_means(losses: np.ndarray, window: int = LOSS_WINDOW) -> np.ndarray:
    """Moving average: means over every `window` consecutive steps (over all steps, when there are fewer)."""
    window = min(window, len(losses))
    sums = np.cumsum(np.concatenate([[0.0], losses]))
    return (sums[window:] - sums[:-window]) / window


ClipsSeen = Sequence[tuple[Sequence[str], Sequence[int]]]
"""Clip ids and crop starts of every step."""


def clip_rows(history: MetricsHistory, seen: ClipsSeen, context_weight: float) -> list[ClipRow]:
    """Rows of metrics.parquet: one per clip and step."""
    return [
        ClipRow(
            step=number + 1,
            clip_id=clip_id,
            crop_start=start,
            timestep=float(timestep),
            loss=float(generated) + context_weight * float(context),
            generated_loss=float(generated),
            context_loss=float(context),
        )
        for number, ((clip_ids, starts), figures) in enumerate(zip(seen, history.by_step(), strict=True))
        for clip_id, start, (timestep, generated, context) in zip(clip_ids, starts, figures, strict=True)
    ]


def step_rows(history: MetricsHistory, params: TrainParams) -> list[StepRow]:
    """Rows of steps.parquet: one per step."""
    losses = history.losses(params.mask_loss_weight)
    return [
        StepRow(
            step=number + 1, loss=float(loss), learning_rate=learning_rate(params, number), gradient_norm=float(norm)
        )
        for number, (loss, norm) in enumerate(zip(losses, history.gradient_norms, strict=True))
    ]


def layer_rows(history: MetricsHistory, names: Sequence[str]) -> list[LayerRow]:
    """Rows of layers.parquet: one per group of layers and recorded step."""
    return [
        LayerRow(
            step=number * RECORD_EVERY + 1,
            group=name,
            gradient_norm=float(gradient),
            update_norm=float(update),
            value_norm=float(value),
        )
        for number, norms in enumerate(history.layer_norms)
        for name, (gradient, update, value) in zip(names, norms, strict=True)
    ]
