"""Learning rates over a run, and recipes changed from the command line. Light: standard library only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar


@dataclass(frozen=True, kw_only=True)
class RateSchedule:
    """Rates are shares of the highest one; shares of the run are of its seconds."""

    warm_up_steps: int = 300
    decay_from: float = 0.3
    """Share of the run from which the rates fall linearly to `last_rate`."""
    first_rate: float = 1.0
    last_rate: float = 0.0

    def rate_at(self, share: float, step: int) -> float:
        """Learning rate, as a share of the highest, at a share of the run."""
        decay = max(0.0, share - self.decay_from) / (1 - self.decay_from) if self.decay_from < 1 else 0.0
        rate = self.first_rate + (self.last_rate - self.first_rate) * min(1.0, decay)
        return rate * min(1.0, (step + 1) / self.warm_up_steps)


R = TypeVar("R", bound=Any)


def recipe_with(recipe: R, settings: Sequence[str]) -> R:
    """The recipe with FIELD=JSON settings applied, of its own fields and of its shape's."""
    shape_fields = {one.name for one in fields(recipe.shape)}
    for setting in settings:
        name, _, value = setting.partition("=")
        read: Any = json.loads(value)
        change: dict[str, Any] = {name: tuple(read) if isinstance(read, list) else read}
        recipe = replace(recipe, **({"shape": replace(recipe.shape, **change)} if name in shape_fields else change))
    return recipe
