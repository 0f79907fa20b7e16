"""What a finished training means, and what to do with its file. Light: standard library only."""

from __future__ import annotations

import shlex
from pathlib import Path

from pipeline.request.recipe import Recipe


def next_steps(recipe: Recipe, adapter: Path) -> list[str]:
    """Lines for people after a training.

    Args:
        adapter: the file in the output folder.
    """
    spec = recipe.model
    words = ["sa3-trainer", "generate", "your prompt", "--model", spec.name, "--adapter", str(adapter)]
    words += [] if recipe.weights is None else ["--weights", str(recipe.weights)]
    words += [] if recipe.store == Path("artifacts") else ["--store", str(recipe.store)]
    better = f"; --model {spec.inference_model} uses the inference model, in fewer steps" if spec.repo else ""
    return [
        "the loss before and after is of the same clips, noise and timesteps: lower is closer to your clips, and your "
        "ears decide whether it is better",
        f"listen: {shlex.join(words)}{better}",
        "other programs that load adapters of Stable Audio 3 take it too; docs/formats.md says which kinds each takes",
    ]
