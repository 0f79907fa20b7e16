"""Checkpoints of the training, to go on from exactly; and the averaged weights, in float16, as the product loads them.

The weights are a file of `model.` and `conditioner.` tensors, and beside it the folder `text_encoder`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stages.models.load_weights import CONDITIONER, DENOISER
from stages.pretrain.transformer.step import TransformerStep
from stages.pretrain.transformer.text_encoder import read_weights, write_folder

TEXT_ENCODER = "text_encoder"
"""Name of the text encoder's folder, beside the weights."""


def save(step: TransformerStep, num_steps: int, file: Path) -> None:
    """Write what the next step depends on, but for the pool of sounds; atomically."""
    state = {
        "num_steps": num_steps,
        "generator": step.generator.state_dict(),
        "optimizer": step.optimizer.state(),
        "average": step.average.average,
        "random": torch.get_rng_state(),
    }
    aside = file.with_suffix(".tmp")
    torch.save(state, aside)
    aside.replace(file)


def restore(step: TransformerStep, file: Path) -> int:
    """Go on from a checkpoint; returns the number of steps it had done."""
    state = torch.load(file, map_location=step.device, weights_only=True)
    step.generator.load_state_dict(state["generator"])
    step.optimizer.load_state(state["optimizer"])
    for average, stored in zip(step.average.average, state["average"], strict=True):
        average.copy_(stored)
    torch.set_rng_state(state["random"].cpu())
    return int(state["num_steps"])


def save_weights(step: TransformerStep, tokenizer_json: str, file: Path) -> None:
    """Write the averaged weights and the text encoder's folder."""
    step.average.swap()
    generator = step.generator
    networks = {DENOISER: generator.denoiser, CONDITIONER: generator.conditioner}
    weights = {
        prefix + name: value.half().cpu().contiguous()
        for prefix, network in networks.items()
        for name, value in network.state_dict().items()
    }
    write_folder(generator.text_encoder, tokenizer_json, step.recipe.shape, file.parent / TEXT_ENCODER)
    step.average.swap()
    aside = file.with_suffix(".tmp")
    save_file(weights, aside, metadata={"format": "pt"})
    aside.replace(file)


def load_weights(step: TransformerStep, file: Path) -> None:
    """Start from weights and the text encoder beside them; their moving average starts there too."""
    stored = {name: value.float() for name, value in load_file(file).items()}
    for prefix, network in ((DENOISER, step.generator.denoiser), (CONDITIONER, step.generator.conditioner)):
        network.load_state_dict({name[len(prefix) :]: stored[name] for name in stored if name.startswith(prefix)})
    read_weights(step.generator.text_encoder, file.parent / TEXT_ENCODER)
    for average, parameter in zip(step.average.average, step.average.parameters, strict=True):
        average.copy_(parameter.detach())


def stored_tokenizer(file: Path) -> str:
    """The tokenizer beside weights."""
    return (file.parent / TEXT_ENCODER / "tokenizer.json").read_text(encoding="utf-8")
