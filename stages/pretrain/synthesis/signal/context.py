"""Random values and the time axis that the sounds of one batch are rendered with.

Parameters are drawn on the CPU, so that facts are the same on every device and reading them never waits for it;
noise is drawn on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

SAMPLE_RATE_HZ = 44_100


@dataclass
class RenderContext:
    """What a family needs to render B sounds of X samples. Draws have a row for each clip."""

    num_clips: int
    num_samples: int
    device: torch.device
    parameters: torch.Generator
    """Generator on the CPU, of the parameters of sounds."""
    noise: torch.Generator
    """Generator on the device, of audio noise."""
    facts: dict[str, list[Any]] = field(default_factory=dict)
    """Facts told so far: name -> one value per clip."""

    @cached_property
    def time_X(self) -> Tensor:
        return torch.arange(self.num_samples, device=self.device, dtype=torch.float32) / SAMPLE_RATE_HZ

    @property
    def window_seconds(self) -> float:
        return self.num_samples / SAMPLE_RATE_HZ

    def tell(self, **facts: Sequence[Any] | Tensor) -> None:
        """Record facts, one value per clip."""
        for name, values in facts.items():
            self.facts[name] = values.flatten().tolist() if isinstance(values, Tensor) else list(values)

    def uniform(self, low: float, high: float, columns: int = 1) -> Tensor:
        """(B, columns) in [low, high)."""
        return self._unit(columns).mul(high - low).add(low).to(self.device)

    def log_uniform(self, low: float, high: float, columns: int = 1) -> Tensor:
        """(B, columns) with a uniform logarithm."""
        return self._unit(columns).mul(math.log(high / low)).exp().mul(low).to(self.device)

    def integers(self, low: int, high: int, columns: int = 1) -> Tensor:
        """(B, columns) int64 in [low, high], both included."""
        size = (self.num_clips, columns)
        return torch.randint(low, high + 1, size, generator=self.parameters).to(self.device)

    def coin(self, probability: float) -> Tensor:
        """(B, 1) float: 1 with the probability given, else 0."""
        return (self._unit(1) < probability).float().to(self.device)

    def choice(self, names: Sequence[str]) -> tuple[list[str], Tensor]:
        """One of the names for each clip, and their indices, (B,) int64."""
        index_B = torch.randint(len(names), (self.num_clips,), generator=self.parameters)
        return [names[index] for index in index_B.tolist()], index_B.to(self.device)

    def table(self, rows: Sequence[Sequence[float]], index_B: Tensor) -> Tensor:
        """(B, columns): a row of constants for each clip."""
        return torch.tensor(rows, dtype=torch.float32, device=self.device)[index_B]

    def duration(self, low: float, high: float) -> Tensor:
        """(B, 1) seconds, log uniform, within the window."""
        high = max(min(high, self.window_seconds), 0.05)
        return self.log_uniform(min(low, 0.9 * high), high)

    def white_noise(self, *shape: int) -> Tensor:
        """Unit normals on the device."""
        return torch.randn(*shape, generator=self.noise, device=self.device)

    def _unit(self, columns: int) -> Tensor:
        return torch.rand(self.num_clips, columns, generator=self.parameters)
