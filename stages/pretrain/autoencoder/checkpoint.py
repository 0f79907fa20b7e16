"""Checkpoints of the training, to go on from exactly; and the averaged weights alone, in float16."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stages.pretrain.autoencoder.step import TrainingStep


def save(step: TrainingStep, num_steps: int, file: Path) -> None:
    """Write everything that the next step depends on, and the generator's state; atomically."""
    state = {
        "num_steps": num_steps,
        "trainee": step.trainee.state_dict(),
        "optimizer": step.optimizer.state(),
        "average": step.average.average,
        "random": torch.get_rng_state(),
        "discriminator": None if step.discriminator is None else step.discriminator.state_dict(),
        "judge": None if step.judge is None else step.judge.state(),
    }
    aside = file.with_suffix(".tmp")
    torch.save(state, aside)
    aside.replace(file)


def restore(step: TrainingStep, file: Path) -> int:
    """Go on from a checkpoint; returns the number of steps it had done."""
    device = step.audio_BAX.device
    state = torch.load(file, map_location=device, weights_only=True)
    step.trainee.load_state_dict(state["trainee"])
    step.optimizer.load_state(state["optimizer"])
    for average, stored in zip(step.average.average, state["average"], strict=True):
        average.copy_(stored)
    if step.discriminator is not None and step.judge is not None and state["discriminator"] is not None:
        step.discriminator.load_state_dict(state["discriminator"])
        step.judge.load_state(state["judge"])
    torch.set_rng_state(state["random"].cpu())
    return int(state["num_steps"])


def save_weights(step: TrainingStep, file: Path) -> None:
    """Write the averaged weights in float16, under the published names of an autoencoder alone."""
    step.average.swap()
    weights = {name: value.half().cpu().contiguous() for name, value in step.trainee.autoencoder.state_dict().items()}
    step.average.swap()
    aside = file.with_suffix(".tmp")
    save_file(weights, aside, metadata={"format": "pt"})
    aside.replace(file)


def load_weights(step: TrainingStep, file: Path) -> None:
    """Start from weights; their moving average starts there too."""
    stored = {name: value.float() for name, value in load_file(file).items()}
    step.trainee.autoencoder.load_state_dict(stored)
    for average, parameter in zip(step.average.average, step.average.parameters, strict=True):
        average.copy_(parameter.detach())
