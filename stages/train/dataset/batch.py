"""One batch of training examples. Letters: B clips, C latent channels, T frames."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's examples."""

    clip_ids: tuple[str, ...]
    crop_starts: tuple[int, ...]
    """First sample of each excerpt inside its clip."""
    latents_BCT: Tensor
    """float32; silence behind each clip."""
    noise_BCT: Tensor
    """float32, before it is paired with clips."""
    timestep_B: Tensor
    """float32, after the shift for length."""
    real_BT: Tensor
    """bool, True for the clip and its extension into silence: attended to and trained on."""
    given_BT: Tensor
    """bool, True where latents are handed to the network."""
    dropped_B: Tensor
    """bool, True where the prompt is withheld."""
    seconds_total_B: Tensor
    """float32, what the network is told; whole recordings unless `crop_seconds` says otherwise.

    Where an excerpt starts is told to no model there is: none has a conditioner for seconds_start.
    """
    hidden: tuple[Tensor, ...]
    """Prompt hidden states of each item, (tokens, width)."""
    all_real: bool
    """No padding at all; known without asking the device."""
    parts: tuple[int, ...] = ()
    """How many consecutive clips go through the network at a time; empty: all at once."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        held: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in held.items() if isinstance(value, Tensor)}
        return replace(self, **moved)
