"""The commands that a worker runs for a task: this project's own command line. Light: standard library only."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.files.atomic_files import atomic_write_bytes
from pipeline.request.opener import POLICY_VARIABLE, PUBLIC
from pipeline.serve.jobs.job import Job
from pipeline.serve.jobs.job_folder import JobFolder
from pipeline.serve.settings import Settings

OUTPUT_NAME = "adapter"
_DEFAULT_STEPS = 1000
_EVENTS = ("--progress", "json")
_MARKS = 100
_CHECKPOINTS = (20, 50, 500)
"""Parts into which checkpoints divide a training, and the least and most steps between two."""


def spec_of(job: Job, folder: JobFolder, settings: Settings, device: str, *, only_if_stored: bool) -> dict[str, Any]:
    """What the worker of a job is asked to do; writes the recipe that its commands read.

    Args:
        only_if_stored: end without a result where the store does not hold one.
    """
    environment = {} if settings.allow_private else {POLICY_VARIABLE: PUBLIC}
    trains = job.kind == "train"
    commands = _training(job, folder, settings, device) if trains else _generation(job, folder, settings, device)
    gate = [_sa3("plan", *commands[0][4:7])] if only_if_stored and trains else []
    return {"commands": commands, "gate": gate, "environment": environment}


def _sa3(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", *arguments]


def _training(job: Job, folder: JobFolder, settings: Settings, device: str) -> list[list[str]]:
    """One `run` whose fields stand in a recipe: addresses may hold secrets, and other users see command lines."""
    values = dict(job.task["recipe"])
    steps = values.get("number_of_steps", _DEFAULT_STEPS)
    steps = int(steps) if str(steps).isdigit() else _DEFAULT_STEPS
    parts, least, most = _CHECKPOINTS
    values |= {"device": device, "threads": settings.threads, "log_every": max(1, steps // _MARKS)}
    values |= {"checkpoint_every": min(most, max(least, steps // parts))}
    values |= {"store": str(settings.store), "output": str(folder.output), "name": OUTPUT_NAME, "overwrite": True}
    recipe = folder.root / "recipe.toml"
    folder.root.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(recipe, toml(values).encode())
    return [_sa3("run", "--recipe", str(recipe), "--json", *_EVENTS)]


def _generation(job: Job, folder: JobFolder, settings: Settings, device: str) -> list[list[str]]:
    """`generate`, after a command that fetches the adapters that are not here."""
    task = job.task
    adapters = [f"{adapter_file(folder, at)}:{adapter['scale']}" for at, adapter in enumerate(task["adapters"])]
    flags = {
        "--model": task["model"],
        "--seconds": task["duration"],
        "--seed": task["seed"],
        "--steps": task["num_inference_steps"],
        "--cfg": task["guidance_scale"],
        "--negative-prompt": task["negative_prompt"] or None,
        "--out": folder.output / f"audio.{task['output_format']}",
        "--store": settings.store,
        "--device": device,
        "--threads": settings.threads,
    }
    words = [f"{flag}={value}" for flag, value in flags.items() if value is not None]
    words += [f"--adapter={adapter}" for adapter in adapters]
    fetch = [sys.executable, "-m", "pipeline.serve.jobs.fetch_adapters", str(folder.root), str(settings.store)]
    (folder.root / "adapters").mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder.root / "adapters.json", json.dumps(task["adapters"]).encode())
    return [*([fetch] if adapters else []), _sa3("generate", "--json", *_EVENTS, *words, "--", task["prompt"])]


def adapter_file(folder: JobFolder, number: int) -> Path:
    """Where an adapter that a generation uses is put."""
    return folder.root / "adapters" / f"{number}.safetensors"


def toml(values: Mapping[str, Any]) -> str:
    """A TOML document of texts, numbers, switches and lists of texts."""
    return "".join(f"{name} = {_toml_value(value)}\n" for name, value in values.items())


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml_value(one) for one in value)}]"
    if isinstance(value, float):
        assert math.isfinite(value), "checked by the validator"
        return repr(value)
    # A TOML string has JSON's escapes, but for half surrogates, which no body holds, and DEL, which must be escaped.
    return (
        str(value) if isinstance(value, int) else json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
    )
