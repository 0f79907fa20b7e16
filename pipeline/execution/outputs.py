"""What a training leaves in the output folder, and what may be replaced there without a word."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from cache.atomic_files import atomic_write_bytes
from pipeline.plan.stage_run import StageRun
from pipeline.request.recipe import Recipe
from stages.contract import Artifact


def copy_outputs(run: StageRun, artifact: Artifact, recipe: Recipe, say: Callable[[str], None]) -> tuple[Path, ...]:
    """Copy the adapter and its config to the output folder; a copy that is already the same is left alone.

    Files of the same run with as many steps or fewer are what this one goes on from: they give way without a word.
    """
    recipe.output.mkdir(parents=True, exist_ok=True)
    pairs = {"adapter.safetensors": f"{recipe.name}.safetensors", "config.json": f"{recipe.name}.json"}
    averaged = recipe.output / f"{recipe.name}_ema.safetensors"
    if (artifact.directory / "adapter_ema.safetensors").exists():
        pairs["adapter_ema.safetensors"] = averaged.name
    elif averaged.exists():
        say(f"{averaged} is of an earlier training: this one keeps no average (ema_decay)")
    configs = (_config(recipe.output / pairs["config.json"]), _config(artifact.directory / "config.json"))
    tell = None if goes_on(*configs, run) else say
    return tuple(_copied(artifact.directory / made, recipe.output / name, tell) for made, name in pairs.items())


def goes_on(before: Mapping[str, Any], now: Mapping[str, Any], run: StageRun) -> bool:
    """Whether two configs are of one run, and the second of no fewer steps."""
    free = run.stage.excluded_from_identity(run.params)
    names = [field.name for field in fields(run.params) if field.name not in free]
    return _named(before, names) == _named(now, names) and before["number_of_steps"] <= now["number_of_steps"]


def _named(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """What names the run of a config: its params, its weights, and what it was trained on."""
    dataset = config.get("dataset")
    made_from = dataset.get("artifact") if isinstance(dataset, dict) else None
    return {name: config.get(name) for name in (*names, "weights_digests")} | {"made from": made_from}


def _config(file: Path) -> Mapping[str, Any]:
    """Nothing where there is no config, or no readable one."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("number_of_steps"), int) else {}


def _copied(made: Path, target: Path, say: Callable[[str], None] | None) -> Path:
    content = made.read_bytes()
    before = target.read_bytes() if target.is_file() else None
    if before != content:
        if before is not None and say is not None:
            say(f"{target} is replaced: it held another training (--name keeps both)")
        atomic_write_bytes(target, content)
    return target
