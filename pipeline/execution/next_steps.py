"""What a finished training means, and what to do with its file. Light: standard library only."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from pipeline.request.recipe import Recipe

NAME = "sa3-trainer"


def next_steps(recipe: Recipe, adapter: Path) -> list[str]:
    """Lines for people after a training.

    Args:
        adapter: the file in the output folder.
    """
    spec = recipe.model
    words = [*command_words(), "generate", "your prompt", "--model", spec.name, "--adapter", str(adapter)]
    words += [] if recipe.weights is None else ["--weights", str(recipe.weights)]
    words += [] if recipe.store == Path("artifacts") else ["--store", str(recipe.store)]
    better = f"; --model {spec.inference_model} uses the inference model, in fewer steps" if spec.repo else ""
    return [
        "the loss before and after is of the same clips, noise and timesteps: lower is closer to your clips, and your "
        "ears decide whether it is better",
        f"listen: {shlex.join(words)}{better}",
        "other programs that load adapters of Stable Audio 3 take it too; docs/formats.md says which kinds each takes",
    ]


def command_words() -> list[str]:
    """How this command was started, so that the next one can be typed as it is printed."""
    started = Path(sys.argv[0])
    if started.stem == "__main__":
        return ["python", "-m", started.parent.name]
    if started.stem != NAME:
        return [NAME]
    found = shutil.which(NAME)
    if found is not None and Path(found).resolve() == started.resolve():
        return [NAME]
    try:
        beside = os.path.relpath(started)
    except ValueError:  # another drive of Windows
        return [str(started)]
    return [beside if not beside.startswith("..") else os.path.abspath(started)]  # noqa: PTH100 - links stay
