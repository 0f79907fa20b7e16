"""One training step of the transformer and its text encoder; on CUDA replayed from a graph for each length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stages.models.nets.dit.transformer import run_block
from stages.pretrain.autoencoder.optimizer import MovingAverage, MuonAdamW
from stages.pretrain.autoencoder.step import captured
from stages.pretrain.transformer.batch import BatchDraws, batch_losses
from stages.pretrain.transformer.generator import TrainedGenerator
from stages.pretrain.transformer.pool import Shelf
from stages.pretrain.transformer.recipe import TransformerRecipe

TERMS = ("loss", "gradient norm")
REPORTED_SHARE = 0.01
"""Share of a new step in the running means of the terms."""
_MOST_COMPILED = 64
"""Versions of a block that may be compiled: one for each length, and some that differ in their inputs' kinds."""


class TransformerStep:
    """Networks, optimisers and the shelves they draw from; calling it makes one step."""

    def __init__(self, recipe: TransformerRecipe, shelves: Sequence[Shelf], device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.shelves = recipe, device, list(shelves)
        self.generator = TrainedGenerator(recipe.shape, recipe.seed).to(device)
        self.parameters = [parameter for parameter in self.generator.parameters() if parameter.requires_grad]
        self.optimizer = MuonAdamW(self.parameters, self.generator.matrices(), lr=recipe.lr, muon_lr=recipe.muon_lr)
        self.average = MovingAverage(self.parameters, recipe.average_decay)
        self.draws = BatchDraws(recipe, device)
        self.running_means = torch.zeros(len(TERMS), device=device)
        if recipe.compiled:
            self.generator.denoiser.model.transformer.run_block = _CompiledBlocks()
        self._runs = [self._run(partial(self._eager, shelf)) for shelf in self.shelves]

    def _run(self, step: Callable[[], None]) -> Callable[[], None]:
        return captured(step, self.device) if self.recipe.graphs else step

    def __call__(self, length: int) -> None:
        """One step with the shelf of this number."""
        self._runs[length]()

    def _eager(self, shelf: Shelf) -> None:
        self.optimizer.clear_gradients()
        loss = batch_losses(self.generator, self.draws.batch(shelf)).total(self.recipe.context_weight)
        loss.backward()
        norm = self.optimizer.step()
        self.average.follow()
        self.running_means.lerp_(torch.stack([loss, norm]).detach(), REPORTED_SHARE)

    def terms(self) -> dict[str, float]:
        """Running means of the terms."""
        return {name: round(value, 4) for name, value in zip(TERMS, self.running_means.tolist(), strict=True)}


class _CompiledBlocks:
    """Runs blocks compiled where they are trained, and as they are elsewhere."""

    def __init__(self) -> None:
        self.compiled = torch.compile(run_block, dynamic=False)

    def __call__(self, block: nn.Module, *inputs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return run_block(block, *inputs)
        from torch._dynamo import config  # deferred: only where something is compiled

        dynamo: Any = config
        with dynamo.patch(recompile_limit=_MOST_COMPILED):
            out: Tensor = self.compiled(block, *inputs)
        return out
