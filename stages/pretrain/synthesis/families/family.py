"""A family of sounds: how it is rendered and how often it occurs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from stages.pretrain.synthesis.signal.context import RenderContext

Dry = tuple[Tensor, Tensor]
"""A dry sound, (B, 1, X) or with a decorrelated twin (B, 2, X), and the seconds it lasts, (B, 1)."""


@dataclass(frozen=True)
class Family:
    """One class of sounds, under the name that `SoundFacts.family` gives."""

    name: str
    render: Callable[[RenderContext], Dry]
    """Renders dry sounds of any level and tells their facts to the context."""
    share: float = 1.0
    """How often it occurs, relative to the others."""
