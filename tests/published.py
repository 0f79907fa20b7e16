"""The five published configurations on the meta device: `python -m tests.published` prints a table and exits 1 on any
difference from the published keys and shapes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.models.load_weights import AUTOENCODER, NETWORKS
from stages.models.nets.autoencoder.autoencoder import Autoencoder
from tests.small_networks import GOLDEN

FOLDER = GOLDEN / "published"
WHOLE = {"medium-base": "medium", "small-music-base": "small", "small-sfx-base": "small"}
"""Base models and their size."""
ALONE = {"SAME-S": "small-music-base", "SAME-L": "medium-base"}
"""Autoencoders published alone, and a base model whose autoencoder has the same config."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One network of one published model."""

    model: str
    prefix: str
    """Prefix of its tensors in the file; an autoencoder alone has none."""
    network: nn.Module

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors by their names in the file."""
        return {self.prefix + name: tensor for name, tensor in self.network.state_dict().items()}

    @property
    def differences(self) -> list[str]:
        """Names and shapes in the network or in the published file only."""
        ours = {(name, tuple(tensor.shape)) for name, tensor in self.tensors.items()}
        return sorted(f"{name} {shape}" for name, shape in ours ^ set(published_shapes(self).items()))

    @property
    def num_values(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def num_parameters(self) -> int:
        """Values without buffers."""
        return sum(parameter.numel() for parameter in self.network.parameters())


def config_of(model: str) -> dict[str, Any]:
    """The published model_config.json; for an autoencoder alone, its section of the base model's."""
    if model in WHOLE:
        return json.loads((FOLDER / f"{model}.json").read_text("utf-8"))  # type: ignore[no-any-return]
    whole = config_of(ALONE[model])
    return {"sample_rate": whole["sample_rate"], "model": whole["model"]["pretransform"]["config"]}


def parts(model: str) -> Iterator[Part]:
    """The networks of a published model, on the meta device."""
    config = config_of(model)
    with torch.device("meta"):
        if model in ALONE:
            yield Part(model=model, prefix="", network=Autoencoder(config))
            return
        for prefix, network in NETWORKS.items():
            yield Part(model=model, prefix=prefix, network=network(config))


def published_shapes(part: Part) -> Mapping[str, tuple[int, ...]]:
    """Shape of every published tensor of this network by its name in the file; `{i}` in a pattern is a block number."""
    patterns = json.loads((FOLDER / "tensors.json").read_text("utf-8"))[WHOLE[ALONE.get(part.model, part.model)]]
    prefix = part.prefix or AUTOENCODER
    return {
        pattern.replace("{i}", str(number)).removeprefix("" if part.prefix else prefix): tuple(entry["shape"])
        for pattern, entry in patterns.items()
        if pattern.startswith(prefix)
        for number in range(entry["count"])
    }


def main() -> int:
    """Print a line per network and per file."""
    line = "{:<18} {:<20} {:>8} {:>15} {:>15}  {}".format
    print(line("model", "prefix", "tensors", "values", "parameters", "keys and shapes"))
    wrong = 0
    for model in (*WHOLE, *ALONE):
        networks = list(parts(model))
        for part in networks:
            found = len(part.differences)
            wrong += found
            verdict = f"{found} differ" if found else "all as published"
            counts = f"{len(part.tensors):,}", f"{part.num_values:,}", f"{part.num_parameters:,}"
            print(line(model, part.prefix or "(none)", *counts, verdict))
        if len(networks) > 1:
            sums = [sum(values) for values in zip(*map(_counts, networks), strict=True)]
            print(line(model, "total", *(f"{each:,}" for each in sums), ""))
    return 1 if wrong else 0


def _counts(part: Part) -> tuple[int, int, int]:
    return len(part.tensors), part.num_values, part.num_parameters


if __name__ == "__main__":
    sys.exit(main())
