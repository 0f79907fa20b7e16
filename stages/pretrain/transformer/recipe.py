"""Settings of one run of the transformer's training. Light: standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.pretrain.rate_schedule import RateSchedule
from stages.pretrain.transformer.architecture import TransformerShape


@dataclass(frozen=True)
class Length:
    """One length of batches: CUDA graphs want fixed shapes."""

    frames: int
    """Latent frames of every clip, with the silence behind it."""
    content_frames: int
    """Frames that the longest sound takes."""
    step_share: float
    """Share of the steps."""


LENGTHS = (Length(64, 28, 0.35), Length(128, 72, 0.35), Length(208, 144, 0.25), Length(288, 216, 0.05))
"""Sounds of up to 2.6, 6.7, 13.4 and 20 s; behind the longer ones there is room for the headroom of a generation."""


@dataclass(frozen=True, kw_only=True)
class TransformerRecipe(RateSchedule):
    """Rates, amounts and probabilities; shares of the run are of its seconds."""

    shape: TransformerShape = field(default_factory=TransformerShape)
    lengths: tuple[Length, ...] = LENGTHS
    seed: int = 0
    frames_per_batch: int = 16_384
    lr: float = 1e-3
    muon_lr: float = 1e-2
    decay_from: float = 0.4
    average_decay: float = 0.9995
    dropout: float = 0.1
    """Probability that prompt and duration are withheld, for guidance."""
    mask_probabilities: tuple[float, ...] = (0.1, 0.8, 0.1)
    """Inpainting masks: segments, none, continuation."""
    context_weight: float = 1.0
    timestep_truncation: float = 0.075
    headroom_share: float = 0.5
    """Clips with exactly the silence that a generation has behind it; the others get a random length of silence."""
    silence_seconds: float = 4.0
    """Mean of that random length."""
    longer_share: float = 0.25
    """Clips whose duration counts up to `longest_extra_seconds` of their silence, as files often do."""
    longest_extra_seconds: float = 4.0
    compiled: bool = False
    graphs: bool = True
    """Replay steps from CUDA graphs; off where one cannot be captured."""

    def batch_size(self, length: Length) -> int:
        """Clips of a batch of this length."""
        return max(1, self.frames_per_batch // length.frames)
