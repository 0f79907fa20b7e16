"""What a training leaves to look at: a row per clip seen and a row per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stages.train.objective import Losses

# S steps, B clips of a batch.

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


@dataclass
class History:
    """Figures of every step so far. Kept on the device until somebody looks, so that no step waits."""

    figures_S3B: np.ndarray
    """float32: timestep, generated loss, context loss."""
    norms_S: np.ndarray
    """float32: gradient norm."""
    _pending: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def empty(cls, batch_size: int) -> History:
        return cls(np.zeros((0, 3, batch_size), dtype=np.float32), np.zeros(0, dtype=np.float32))

    def add(self, timestep_B: Tensor, losses: Losses, norm: Tensor) -> None:
        """Note one step."""
        figures_3B = torch.stack([timestep_B, losses.generated_B.detach(), losses.context_B.detach()])
        self.note(figures_3B, norm.detach())

    def note(self, figures_3B: Tensor, norm: Tensor) -> None:
        """The same, of figures put together elsewhere; they must stay as they are."""
        self._pending.append((figures_3B, norm))

    def settle(self) -> None:
        """Bring pending figures to the host."""
        if self._pending:
            figures, norms = (torch.stack(column).cpu().numpy() for column in zip(*self._pending, strict=True))
            self.figures_S3B = np.concatenate([self.figures_S3B, figures.astype(np.float32)])
            self.norms_S = np.concatenate([self.norms_S, norms.astype(np.float32)])
            self._pending = []

    def losses(self, context_weight: float, last: int = 0) -> np.ndarray:
        """(S,) float64 loss of every settled step, or of the last few."""
        figures = self.figures_S3B[-last:].astype(np.float64)
        return (figures[:, 1] + context_weight * figures[:, 2]).mean(axis=1)

    def first_broken(self) -> tuple[int, str]:
        """Number (from 0) of the first settled step with a figure that is not finite, and which: loss or gradient."""
        loss_is_finite_S = np.isfinite(self.figures_S3B).all(axis=(1, 2))
        first = int(np.argmin(loss_is_finite_S & np.isfinite(self.norms_S)))
        return first, "gradient" if loss_is_finite_S[first] else "loss"

    def cut(self, num_steps: int) -> None:
        """Forget everything after the first `num_steps` steps."""
        self.figures_S3B, self.norms_S = self.figures_S3B[:num_steps], self.norms_S[:num_steps]


def window_means(losses_S: np.ndarray, window: int = LOSS_WINDOW) -> np.ndarray:
    """Mean over every stretch of `window` consecutive steps (of all steps, when there are fewer)."""
    window = min(window, len(losses_S))
    sums = np.cumsum(np.concatenate([[0.0], losses_S]))
    return (sums[window:] - sums[:-window]) / window


Seen = Sequence[tuple[Sequence[str], Sequence[int]]]
"""Clip ids and crop starts of every step."""


def clip_rows(history: History, seen: Seen, context_weight: float) -> list[ClipRow]:
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
        for number, ((clip_ids, starts), figures_3B) in enumerate(zip(seen, history.figures_S3B, strict=True))
        for clip_id, start, timestep, generated, context in zip(clip_ids, starts, *figures_3B, strict=True)
    ]


def step_rows(history: History, learning_rate: float, context_weight: float) -> list[StepRow]:
    """One row per step."""
    return [
        StepRow(step=number + 1, loss=float(loss), learning_rate=learning_rate, gradient_norm=float(norm))
        for number, (loss, norm) in enumerate(zip(history.losses(context_weight), history.norms_S, strict=True))
    ]
