"""A training before its first step: network, adapter and optimiser; and the checkpoint to resume from."""

from __future__ import annotations

from functools import partial
from math import prod
from pathlib import Path

from stages.adapters.attach import Adapter, attach
from stages.adapters.singular_vectors import SingularVectorFolder
from stages.adapters.target_layers import rank_limit
from stages.models.load_weights import stored_matrix
from stages.models.quantized_linear import NONE, quantization_of
from stages.train.job import Job
from stages.train.model.frozen_base import load_frozen_base
from stages.train.model.network import Network, stacked_layers
from stages.train.model.starting_adapter import read_starting_adapter, resolved_spec
from stages.train.optim.optimizer import Optimizer
from stages.train.record import checkpoint
from stages.train.record.checkpoint import Checkpoint
from stages.train.record.layer_norms import group_names
from stages.train.record.metrics import MetricsHistory
from stages.train.stage import TrainParams
from stages.train.training import Training


def new_training(job: Job) -> Training:
    """A training at step 0: its output is the base model's, or that of the adapter file to continue from."""
    network = new_network(job)
    optimizer = new_optimizer(network, job.params)
    return Training(
        network=network,
        optimizer=optimizer,
        history=MetricsHistory.empty(len(group_names(optimizer.stacks))),
        params=job.params,
        device=job.device,
        notes={},
    )


def new_optimizer(network: Network, params: TrainParams) -> Optimizer:
    """An optimiser of the adapter's parameters, stacked by shape where they are."""
    stacks = None if network.layers is None else network.layers.stacked_parameters()
    return Optimizer(network.adapter.named_parameters(), params, stacks)


def new_network(job: Job) -> Network:
    """The frozen base with a new adapter, or with the one to continue from.

    It is attached after the cast to the base precision: its magnitudes are norms of the weights as layers use them.
    """
    start = read_starting_adapter(job)
    spec = resolved_spec(job.params, start)
    denoiser, conditioner = load_frozen_base(job, spec)
    adapter = attach(
        (denoiser, conditioner),
        spec,
        generator=job.rng.torch_generator("adapter", 0),
        singular_vector_cache=SingularVectorFolder(job.work.shared / "bases"),
        stored_weight=partial(stored_matrix, job.weights),
    )
    if start is not None:
        adapter.load(start.tensors, job.inputs.files["lora_checkpoint"].name)
    stackable = quantization_of(denoiser) == NONE
    return Network(denoiser, conditioner, adapter, stacked_layers(adapter) if stackable else None)


def adapted_rank_limit(network: Network) -> int:
    """Smallest dimension of the adapted layers: the largest rank that an -xs kind can have."""
    adapted = {f"{name}.weight" for name in network.adapter.layer_names()}
    roots = (network.denoiser, network.conditioner)
    weights = {name: weight for root in roots for name, weight in root.named_parameters() if name in adapted}
    return rank_limit({name: (weight.shape[0], prod(weight.shape[1:])) for name, weight in weights.items()})[0]


def num_parameters(adapter: Adapter) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in adapter.named_parameters().values())


def checkpoint_folders(job: Job) -> list[Path]:
    """Folders that may hold checkpoints of the run."""
    directories = [job.work.directory, job.work.continued_from]
    return [directory / checkpoint.FOLDER for directory in directories if directory is not None]


def newest_checkpoint(job: Job) -> Checkpoint | None:
    """The newest usable checkpoint, of this workspace or of an earlier, shorter artifact of the same run."""
    return checkpoint.newest(checkpoint_folders(job), job.identity, job.params.number_of_steps, job.work.say)
