"""Settings of a generation and their defaults by the model's objective. Light: standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.field import param

BASE_OBJECTIVE, FEW_STEP_OBJECTIVE = "rectified_flow", "rf_denoiser"
"""`diffusion_objective` of the base models and of the inference models distilled from them."""
SAMPLERS = ("euler", "rk4", "dpmpp", "pingpong")
"""Names in `stages.models.nets.dit.samplers`, which needs torch."""
MAX_SEED = 2**31 - 1
AUDIO_SUFFIXES = (".wav", ".flac")
SHORTEST_COMPARED_SECONDS = 1.0
"""Of a sound whose distance to a style is asked for: shorter ones hold no rhythm and hardly a spectrum."""


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How noise becomes latents."""

    sampler: str
    steps: int
    cfg: float
    """Scale of classifier-free guidance; 1 = none."""


DEFAULTS: Mapping[str, SamplerSettings] = {
    BASE_OBJECTIVE: SamplerSettings(sampler="euler", steps=50, cfg=7.0),
    FEW_STEP_OBJECTIVE: SamplerSettings(sampler="pingpong", steps=8, cfg=1.0),
}
"""The published recommendations for each objective."""


@dataclass(frozen=True, kw_only=True)
class AdapterUse:
    """An adapter file, and how strongly it acts."""

    file: Path
    strength: float = 1.0

    @staticmethod
    def parsed(text: str) -> AdapterUse:
        """`FILE` or `FILE:STRENGTH`. A colon that no number follows belongs to the path.

        Raises:
            ValueError: the strength is not finite.
        """
        path, _, number = text.rpartition(":")
        try:
            strength = float(number) if path else None
        except ValueError:
            strength = None
        if strength is None:
            return AdapterUse(file=Path(text).expanduser())
        if not math.isfinite(strength):
            raise ValueError(f"the strength of an adapter must be a finite number; got {number}")
        return AdapterUse(file=Path(path).expanduser(), strength=strength)


@dataclass(frozen=True, kw_only=True)
class Version:
    """One file to write: the clip as it sounds with these adapters."""

    name: str
    file: Path
    adapters: Sequence[AdapterUse] = ()


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What to generate: one clip. `broken_rules` lists the values that are out of range."""

    prompt: str = param("", pattern=r"(?s).*\S.*", rule="a text that is not empty", help="what to hear")
    negative_prompt: str | None = param(None, help="what to move away from")
    seconds: float = param(10.0, ge=0.1, help="duration, at most the model's native length")
    seed: int = param(0, ge=0, le=MAX_SEED, help="of the noise; unset: drawn, and named")
    sampler: str | None = param(None, choices=SAMPLERS, help="how noise becomes sound")
    """None, and so for steps and cfg: the default of the model's objective."""
    steps: int | None = param(None, ge=1, le=1000, help="steps of the sampler")
    cfg: float | None = param(None, ge=0, le=100, help="scale of classifier-free guidance; 1 = none")

    def sampling(self, objective: str) -> SamplerSettings:
        """The settings for a model of this objective; what was not asked for has its default. Raises KeyError."""
        asked = {"sampler": self.sampler, "steps": self.steps, "cfg": self.cfg}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return replace(DEFAULTS[objective], **given)

    def ignored(self, objective: str) -> Iterator[tuple[str, str]]:
        """Name and reason of every setting that a model of this objective would ignore."""
        if self.negative_prompt is not None and self.sampling(objective).cfg == 1:
            yield "negative_prompt", "acts through guidance only, and cfg is 1: raise --cfg, or leave it out"
