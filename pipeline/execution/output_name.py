"""The name of a training's output files: the one asked for, unless files of another training have it.

Light: standard library only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.execution.earlier_output import is_kept_from_same_command
from pipeline.plan.stage_run import StageRun
from pipeline.request.recipe import Recipe
from stages.safetensors_header import NotSafetensors, read_header

ADAPTER, CONFIG, AVERAGED = ".safetensors", ".json", "_ema.safetensors"
"""What the names of a finished training's files end in."""
_EXPORTED = re.compile(r"_\d{6,}(_stopped)?(_ema)?\.safetensors")
"""What the names of adapters end in that were exported on the way."""


@dataclass(frozen=True)
class OutputName:
    """The name of the output files, and what is said of it."""

    name: str
    note: str = ""
    """Empty where it is the name asked for, and nothing is replaced."""


def output_name(recipe: Recipe, run: StageRun) -> OutputName:
    """The name asked for, or the first of NAME-2, NAME-3 and so on that no other training has.

    Files of the same training with as many steps or fewer are its own: it continued them. What the same command made of
    its data as it was before is replaced too, where the store holds it: the name means the newest, and nothing is lost.

    Args:
        run: the training, whose identity is known.
    """
    folder, wanted = recipe.output, recipe.name
    taken = next(_files_of_others(folder, wanted, run), None)
    if taken is None:
        return OutputName(wanted)
    if recipe.values["overwrite"]:
        return OutputName(wanted, f"{taken} is from another training, and is replaced (--overwrite)")
    if _is_earlier_result(recipe, run):
        return OutputName(
            wanted, f"{taken} is what this command made of other data before: replaced, and kept in the store"
        )
    names = (f"{wanted}-{number}" for number in count(2))
    free = next(name for name in names if next(_files_of_others(folder, name, run), None) is None)
    return OutputName(
        free,
        f"{taken} is from another training: the files of this one are called {free} "
        "(--name NAME gives another name, --overwrite replaces what is there)",
    )


def _is_earlier_result(recipe: Recipe, run: StageRun) -> bool:
    """Whether only files are in the way that the same command made, and that the store still holds."""
    folder, name = recipe.output, recipe.name
    own = {folder / f"{name}{end}" for end in (ADAPTER, CONFIG)}
    identity = _content(folder / f"{name}{CONFIG}").get("identity")
    return own.issuperset(_files_of_others(folder, name, run)) and is_kept_from_same_command(
        recipe, identity, folder / f"{name}{ADAPTER}"
    )


def _files_of_others(folder: Path, name: str, run: StageRun) -> Iterator[Path]:
    """The files of this name that are not of this training, or are of more steps of it."""
    config = folder / f"{name}{CONFIG}"
    if not _is_own(_content(config), run):
        yield from (file for end in (ADAPTER, CONFIG, AVERAGED) if (file := folder / f"{name}{end}").exists())
    for file in sorted(folder.glob(f"{_literal(name)}_*{ADAPTER}")):
        if _EXPORTED.fullmatch(file.name.removeprefix(name)) and _identity_in(file) != run.identity:
            yield file


def _literal(name: str) -> str:
    """A glob pattern that matches this name only."""
    return re.sub(r"([\[*?])", r"[\1]", name)


def _is_own(config: Mapping[str, Any], run: StageRun) -> bool:
    steps = config.get("number_of_steps")
    return isinstance(steps, int) and steps <= run.params.number_of_steps and config.get("identity") == run.identity


def _content(config: Path) -> Mapping[str, Any]:
    """A config; empty where there is none, or no valid one."""
    try:
        content = json.loads(config.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _identity_in(adapter: Path) -> str | None:
    try:
        return read_header(adapter).metadata.get("identity")
    except (OSError, NotSafetensors):
        return None
