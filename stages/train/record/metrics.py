"""What a training leaves to look at: a row per clip seen, a row per step, and now and then one per group of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stages.train.optim.lr_schedule import learning_rate
from stages.train.record.layer_norms import EVERY, LayerRow, is_due
from stages.train.stage import TrainParams

# S steps, B clips of a batch, N clips of all steps, R looks at G groups of layers.

LOSS_WINDOW = 50
"""Steps a loss is averaged over before it is called final or best: single steps differ by their timesteps."""


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
    """As it counts in the step: both parts, the second weighted."""
    generated_loss: float
    context_loss: float


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One step (steps.parquet)."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    """Before clipping."""


@dataclass
class MetricsHistory:
    """Figures of every step so far. Kept on the device until somebody looks, so that no step waits."""

    figures_N3: np.ndarray
    """float32: timestep, generated loss, context loss of every clip in the order seen."""
    counts_S: np.ndarray
    """int64: clips of each step."""
    norms_S: np.ndarray
    """float32: gradient norm."""
    layers_RG3: np.ndarray
    """float32: gradient, update and value norms of each group of layers, at the steps that were looked at."""
    _pending: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _pending_layers: list[Tensor] = field(default_factory=list)

    @classmethod
    def empty(cls, num_groups: int = 0) -> MetricsHistory:
        empty = lambda *shape: np.zeros(shape, dtype=np.float32)  # noqa: E731 - short for this function only
        return cls(empty(0, 3), np.zeros(0, dtype=np.int64), empty(0), empty(0, num_groups, 3))

    def append(self, figures_3B: Tensor, norm: Tensor) -> None:
        """Note one step; the tensors must stay as they are."""
        self._pending.append((figures_3B, norm))

    def append_layer_norms(self, figures_G3: Tensor) -> None:
        """Note a look at the layers."""
        self._pending_layers.append(figures_G3)

    def flush(self) -> None:
        """Bring pending figures to the host."""
        if self._pending:
            figures, norms = zip(*self._pending, strict=True)
            counts = np.array([figures_3B.shape[1] for figures_3B in figures], dtype=np.int64)
            self.figures_N3 = np.concatenate([self.figures_N3, _settled(torch.cat(figures, dim=1).T)])
            self.counts_S = np.concatenate([self.counts_S, counts])
            self.norms_S = np.concatenate([self.norms_S, _settled(torch.stack(norms))])
            self._pending = []
        if self._pending_layers:
            self.layers_RG3 = np.concatenate([self.layers_RG3, _settled(torch.stack(self._pending_layers))])
            self._pending_layers = []

    def losses(self, context_weight: float, last: int = 0) -> np.ndarray:
        """(S,) float64 loss of every settled step, or of the last few: the mean over its clips."""
        counts = self.counts_S[-last:]
        figures = self.figures_N3[len(self.figures_N3) - counts.sum() :].astype(np.float64)
        per_clip = figures[:, 1] + context_weight * figures[:, 2]
        return np.add.reduceat(per_clip, starts_of(counts)) / counts if len(counts) else np.zeros(0)

    def by_step(self) -> list[np.ndarray]:
        """Of every settled step its clips' figures, (B, 3)."""
        return np.split(self.figures_N3, np.cumsum(self.counts_S)[:-1]) if len(self.counts_S) else []

    def first_non_finite(self) -> tuple[int, str]:
        """Number (from 0) of the first settled step with a figure that is not finite, and which: loss or gradient."""
        loss_is_finite_S = np.array([np.isfinite(figures).all() for figures in self.by_step()])
        first = int(np.argmin(loss_is_finite_S & np.isfinite(self.norms_S)))
        return first, "gradient" if loss_is_finite_S[first] else "loss"

    def truncate(self, num_steps: int) -> None:
        """Forget everything after the first `num_steps` steps."""
        self.counts_S, self.norms_S = self.counts_S[:num_steps], self.norms_S[:num_steps]
        self.figures_N3 = self.figures_N3[: self.counts_S.sum()]
        self.layers_RG3 = self.layers_RG3[: sum(is_due(step) for step in range(num_steps))]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        self.flush()
        return {name: torch.from_numpy(getattr(self, name)) for name in _SAVED}

    @classmethod
    def from_state(cls, saved: Mapping[str, Tensor]) -> MetricsHistory:
        """What `saved` gave."""
        figures, counts, norms, layers = (saved[name].numpy() for name in _SAVED)
        return cls(figures, counts, norms, layers)


_SAVED = ("figures_N3", "counts_S", "norms_S", "layers_RG3")


def _settled(figures: Tensor) -> np.ndarray:
    on_host: np.ndarray = figures.float().cpu().numpy()
    return on_host


def starts_of(counts: np.ndarray) -> np.ndarray:
    """Where each step's clips begin."""
    return np.cumsum(counts) - counts


def window_means(losses_S: np.ndarray, window: int = LOSS_WINDOW) -> np.ndarray:
    """Mean over every stretch of `window` consecutive steps (of all steps, when there are fewer)."""
    window = min(window, len(losses_S))
    sums = np.cumsum(np.concatenate([[0.0], losses_S]))
    return (sums[window:] - sums[:-window]) / window


Seen = Sequence[tuple[Sequence[str], Sequence[int]]]
"""Clip ids and crop starts of every step."""


def clip_rows(history: MetricsHistory, seen: Seen, context_weight: float) -> list[ClipRow]:
    """One row per clip and step."""
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
        for number, ((clip_ids, starts), figures_B3) in enumerate(zip(seen, history.by_step(), strict=True))
        for clip_id, start, (timestep, generated, context) in zip(clip_ids, starts, figures_B3, strict=True)
    ]


def step_rows(history: MetricsHistory, params: TrainParams) -> list[StepRow]:
    """One row per step."""
    losses = history.losses(params.mask_loss_weight)
    return [
        StepRow(
            step=number + 1, loss=float(loss), learning_rate=learning_rate(params, number), gradient_norm=float(norm)
        )
        for number, (loss, norm) in enumerate(zip(losses, history.norms_S, strict=True))
    ]


def layer_rows(history: MetricsHistory, names: Sequence[str]) -> list[LayerRow]:
    """One row per group of layers and look."""
    return [
        LayerRow(
            step=place * EVERY + 1,
            group=name,
            gradient_norm=float(gradient),
            update_norm=float(update),
            value_norm=float(value),
        )
        for place, figures_G3 in enumerate(history.layers_RG3)
        for name, (gradient, update, value) in zip(names, figures_G3, strict=True)
    ]
