"""The cases that are measured: trainings of random networks of the published shapes on random batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages import catalogue
from stages.adapters.attach import attach
from stages.adapters.kind import kind_named
from stages.adapters.target_layers import spec_rank_limit
from stages.models.device import dtype_named
from stages.models.nets.dit.conditioning import Conditioner
from stages.models.nets.dit.transformer import Denoiser
from stages.records import AdapterSpec
from stages.train.dataset.batch import Batch
from stages.train.forecast.estimate import TrainingSetup
from stages.train.forecast.network_size import BatchSize
from stages.train.model.network import Network, stacked_layers
from stages.train.record.layer_norms import group_names
from stages.train.record.metrics import MetricsHistory
from stages.train.setup import new_optimizer
from stages.train.stage import TrainParams
from stages.train.training import Training

NUM_PROMPT_TOKENS = 24
"""Tokens of a prompt, or as many as the model sees where those are fewer."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One combination of settings."""

    model: str
    num_frames: int
    adapter_type: str = "dora-rows"
    rank: int = 16
    base_precision: str = "bf16"
    batch_size: int = 1
    checkpointing: bool = False
    deterministic: bool = True

    @property
    def params(self) -> TrainParams:
        """The params of its training."""
        return TrainParams(
            model=self.model,
            adapter_type=self.adapter_type,
            rank=self.rank,
            base_precision=self.base_precision,
            batch_size=self.batch_size,
            deterministic=self.deterministic,
        )

    def setup(self, device: torch.device, dtype: torch.dtype, *, eager: bool) -> TrainingSetup:
        """The input of the memory estimate."""
        return TrainingSetup(
            config=config_of(self.model),
            params=self.params,
            batch=BatchSize(num_clips=self.batch_size, num_frames=self.num_frames),
            dtype=dtype,
            device=device,
            eager=eager,
            checkpointing=self.checkpointing,
        )


def config_of(model: str) -> Mapping[str, Any]:
    """The model_config.json of a base model, as its family declares it."""
    return catalogue.family_of(model).model_config(model)


def new_training(case: Case, config: Mapping[str, Any], device: torch.device, *, stacked: bool = True) -> Training:
    """A training of the case before its first step; deterministic.

    Args:
        stacked: compute adapted weights of equal layers at once; otherwise layer by layer, which is the plain path.
    """
    torch.manual_seed(0)
    dtype = dtype_named(case.base_precision)
    denoiser, conditioner = (random_network(on_meta(kind, config), device, dtype) for kind in (Denoiser, Conditioner))
    denoiser.model.transformer.checkpointing = case.checkpointing
    spec = AdapterSpec(kind=case.adapter_type, rank=case.rank, alpha=float(case.rank))
    roots = (denoiser, conditioner)
    vectors = random_singular_vectors(roots, case.rank) if kind_named(spec.kind).basis.singular else None
    adapter = attach(roots, spec, singular_vectors=vectors)
    network = Network(denoiser, conditioner, adapter, stacked_layers(adapter) if stacked else None)
    optimizer = new_optimizer(network, case.params)
    return Training(
        network=network,
        optimizer=optimizer,
        history=MetricsHistory.empty(len(group_names(optimizer.stacks))),
        params=case.params,
        device=device,
        notes={},
    )


def check_rank(case: Case) -> None:
    """Checks the rank against the model's layers. Raises: RankTooLarge."""
    roots = [on_meta(kind, config_of(case.model)) for kind in (Denoiser, Conditioner)]
    weights = {name: module.weight for root in roots for name, module in root.named_modules() if is_layer(module)}
    shapes = {name: (weight.shape[0], weight[0].numel()) for name, weight in weights.items()}
    spec_rank_limit(AdapterSpec(kind=case.adapter_type, rank=case.rank, alpha=float(case.rank)), shapes)


def is_layer(module: nn.Module) -> bool:
    """True for layers that can carry an adapter."""
    return isinstance(module, nn.Linear | nn.Conv1d)


def on_meta(kind: Any, config: Mapping[str, Any]) -> Any:
    """A network on the meta device."""
    with torch.device("meta"):
        return kind(config)


@torch.no_grad()
def random_network(network: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Fills a network with random weights, scaled so that activations keep unit variance."""
    rotary = {name: buffer for name, buffer in network.named_buffers() if name.endswith("inv_freq")}
    network = network.to(dtype).to_empty(device=device)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=(parameter[0].numel()) ** -0.5)
        else:
            nn.init.constant_(parameter, 1.0 if name.endswith("gamma") else 0.0)
    for name, buffer in rotary.items():
        exponent = torch.arange(0, 2 * buffer.numel(), 2, device=device) / (2 * buffer.numel())
        network.get_buffer(name).copy_(10000.0**-exponent)
    return network.eval().requires_grad_(False)


def random_singular_vectors(roots: Any, rank: int) -> dict[str, dict[str, Tensor]]:
    """Random orthonormal columns in place of singular vectors, which take minutes to compute and change no timing."""
    found = {}
    for root in roots:
        for name, module in root.named_modules():
            if is_layer(module):
                sizes = module.weight.flatten(1).shape
                U, V = (torch.linalg.qr(torch.randn(size, rank, device=module.weight.device))[0] for size in sizes)
                found[f"{name}.weight"] = {"U": U.cpu(), "V": V.cpu()}
    return found


def new_batch(case: Case, training: Training, step: int = 0) -> Batch:
    """A random batch on the CPU, the same for the same step."""
    generator = torch.Generator().manual_seed(step)
    channels, width = training.network.denoiser.latent_channels, training.network.conditioner.width
    shape = (case.batch_size, channels, case.num_frames)
    num_tokens = min(NUM_PROMPT_TOKENS, training.network.conditioner.max_length)
    normals = lambda *sizes: torch.randn(*sizes, generator=generator)  # noqa: E731 - short for this function only
    return Batch(
        clip_ids=("made up",) * case.batch_size,
        crop_starts=(0,) * case.batch_size,
        latents_BCT=normals(*shape),
        noise_BCT=normals(*shape),
        timestep_B=torch.rand(case.batch_size, generator=generator),
        real_BT=torch.ones(case.batch_size, case.num_frames, dtype=torch.bool),
        given_BT=torch.rand(case.batch_size, case.num_frames, generator=generator) < 0.3,
        dropped_B=torch.zeros(case.batch_size, dtype=torch.bool),
        seconds_total_B=torch.full((case.batch_size,), 30.0),
        hidden=tuple(normals(num_tokens, width).to(training.device) for _ in range(case.batch_size)),
        all_real=True,
    )
