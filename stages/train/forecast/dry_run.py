"""A step rehearsed on tensors without memory: what it will hold, and how much there is to compute.

The code of a step itself runs on torch's meta device, forward and backward, and a ledger keeps the books. So nothing
here repeats what a block keeps for its backward: whoever changes a block or an adapter changes the count as well.
Blocks are alike, so two shallow networks tell what a deep one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stages import catalogue
from stages.adapters.attach import Adapter, attach
from stages.adapters.kind import kind_named
from stages.adapters.layer import AdaptedLayer
from stages.adapters.stacked.stacked_adapter import StackedAdapter
from stages.model_config import ModelConfig
from stages.models.nets.attention.attention import replace_attention
from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.models.nets.dit.conditioning import Conditioner
from stages.models.nets.dit.transformer import Denoiser
from stages.records import AdapterSpec
from stages.train.dataset.batch import Batch
from stages.train.forecast.op_counter import BaseProducts, Ledger, counting_attention, layers_of, matrix_values, rows
from stages.train.model.network import Network, batch_losses, stacked_layers
from stages.train.stage import TrainParams

# B clips, C latent channels, T frames, A audio channels, L samples.

SHALLOW = (2, 3)
"""Blocks of the networks rehearsed in place of a deep one; one alone would need no stacks put together."""
NUM_PROMPT_TOKENS = 24
FEW, MANY = 8, 16
"""Clips of the batches rehearsed in place of a larger one: whatever is in a step grows in a straight line with them."""


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """What was counted. Every figure but `passing_bytes` is a straight line in the number of blocks."""

    block_values: int
    """Frozen values of the blocks' matrices, which a quantization stores in 8 bits."""
    block_rows: int
    other_values: int
    """Frozen values apart from these."""
    trained_values: int
    singular_values: int
    """Frozen values of the -xs kinds: singular vectors, and what is kept of their products with the weight."""
    held_bytes: int
    """Held for the backward once the forward is through, beside base weights and adapter."""
    passing_bytes: int
    """Most that the backward holds on top of that; recomputed blocks, if any, are in it."""
    operations: int
    moved_bytes: int
    product_flops: int
    """Of all matrix products, forward and backward, adapters and recomputed blocks included."""
    attention_flops: int
    base_flops: int
    """Of one forward through the base's own matrices."""
    base_attention_flops: int
    """Of one forward."""

    def further(self, deeper: Rehearsed, blocks: int) -> Rehearsed:
        """With so many blocks more, where `deeper` has one more."""
        # One block's backward after the other needs the same room.
        return replace(self.along(deeper, blocks), passing_bytes=deeper.passing_bytes)

    def along(self, other: Rehearsed, times: float) -> Rehearsed:
        """On the straight line from this to the other, so many times as far."""
        before, after = asdict(self), asdict(other)
        return Rehearsed(**{name: round(before[name] + times * (after[name] - before[name])) for name in before})


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a batch."""

    num_clips: int
    num_frames: int


def rehearsed_at(size: Size, step: Callable[[Size], Rehearsed]) -> Rehearsed:
    """What a batch of any size is, from rehearsals of at most `MANY` clips: as quick for a million of them.

    Args:
        step: rehearses a batch.
    """
    if size.num_clips <= MANY:
        return step(size)
    few, many = (step(replace(size, num_clips=clips)) for clips in (FEW, MANY))
    return few.along(many, (size.num_clips - FEW) / (MANY - FEW))


def rehearsed(
    config: Mapping[str, Any], params: TrainParams, size: Size, dtype: torch.dtype, *, checkpointing: bool = False
) -> Rehearsed:
    """One step, forward and backward, with the adapter's layers stacked and one operation after the other.

    Raises:
        FilterMatchesNothing: include or exclude name no layer.
        UnsupportedModelConfig.
    """
    depth = ModelConfig(config).transformer_depth
    filtered = params.include is not None or params.exclude is not None
    # A filter may name blocks by number: then none may be left out.
    depths = (depth,) if filtered or depth <= max(SHALLOW) else SHALLOW
    seen = [
        _step(_network(with_depth(config, blocks), params, dtype), params, size, checkpointing) for blocks in depths
    ]
    return seen[0].further(seen[-1], depth - depths[0])


def with_depth(config: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """The same model_config.json with another number of blocks."""
    changed = deepcopy(dict(config))
    changed["model"]["diffusion"]["config"]["depth"] = depth
    return changed


def _network(config: Mapping[str, Any], params: TrainParams, dtype: torch.dtype) -> Network:
    """Without memory. In place of an -xs kind stands the kind that trains its directions as well."""
    with torch.device("meta"):
        denoiser, conditioner = Denoiser(config).to("meta", dtype), Conditioner(config).to("meta", dtype)
    roots = tuple(root.eval().requires_grad_(False) for root in (denoiser, conditioner))
    spec = AdapterSpec(
        kind=free_kind(params.adapter_type),
        rank=params.rank,
        alpha=float(params.rank),
        include=params.include,
        exclude=params.exclude,
    )
    # The start of A is drawn on the CPU: from a generator of its own, lest the global one move.
    adapter = attach(roots, spec, generator=torch.Generator())
    return Network(denoiser, conditioner, adapter, stacked_layers(adapter))


def free_kind(name: str) -> str:
    """The kind with the same magnitudes and trained directions: singular vectors would need a weight's values."""
    wanted = kind_named(name)
    kinds = {other: kind_named(other) for other in catalogue.adapter_kinds()}
    return next(
        other for other, kind in kinds.items() if kind.magnitude == wanted.magnitude and not kind.basis.singular
    )


def _step(network: Network, params: TrainParams, size: Size, checkpointing: bool) -> Rehearsed:
    ledger, base = Ledger(), BaseProducts()
    roots = (network.denoiser, network.conditioner)
    ledger.know(tensor for root in roots for tensor in (*root.parameters(), *root.buffers()))
    ledger.know(_stacked(network.layers))
    network.denoiser.model.transformer.checkpointing = checkpointing
    replace_attention(network.denoiser, counting_attention(ledger))
    batch = _batch(network, size)
    with ledger, network.ready():
        with base.counted(roots):
            loss = batch_losses(network, batch, paired=False).total(params.mask_loss_weight)
        once, held = ledger.attention_flops, ledger.live_bytes
        ledger.peak_bytes = held
        loss.backward()
    return Rehearsed(
        **_frozen_values(network),
        **_adapter_values(network.adapter, params),
        held_bytes=held,
        passing_bytes=ledger.peak_bytes - held,
        operations=ledger.operations,
        moved_bytes=ledger.moved_bytes,
        product_flops=ledger.product_flops,
        attention_flops=ledger.attention_flops,
        base_flops=base.flops,
        base_attention_flops=once,
    )


def _stacked(layers: StackedAdapter | None) -> list[Tensor]:
    """What the stacked layers are made of, apart from what is trained."""
    assert layers is not None, "the rehearsal stacks its layers"
    held = [tensor for group in layers.groups for tensor in (*group.slot.parameters(), *group.slot.buffers())]
    for group in layers.groups:
        squares = (group.row_squares_LO, group.column_squares_LI)
        held += [group.weight_LOI, *(tensor for tensor in squares if tensor is not None)]
    return held


def _batch(network: Network, size: Size) -> Batch:
    """A batch without memory."""
    channels, width = network.denoiser.latent_channels, network.conditioner.width
    clips, frames = size.num_clips, size.num_frames

    def empty(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*sizes, device="meta", dtype=dtype)

    return Batch(
        clip_ids=("made up",) * clips,
        crop_starts=(0,) * clips,
        latents_BCT=empty(clips, channels, frames),
        noise_BCT=empty(clips, channels, frames),
        timestep_B=empty(clips),
        real_BT=empty(clips, frames, dtype=torch.bool),
        given_BT=empty(clips, frames, dtype=torch.bool),
        dropped_B=empty(clips, dtype=torch.bool),
        seconds_total_B=empty(clips),
        hidden=tuple(empty(NUM_PROMPT_TOKENS, width) for _ in range(clips)),
        all_real=clips == 1,
    )


def _frozen_values(network: Network) -> dict[str, int]:
    trained = {id(parameter) for parameter in network.adapter.named_parameters().values()}
    roots = (network.denoiser, network.conditioner)
    everything = sum(p.numel() for root in roots for p in root.parameters() if id(p) not in trained)
    layers = layers_of(network.denoiser.model.transformer.layers)
    in_blocks = sum(matrix_values(layer) for layer in layers)
    num_rows = sum(rows(layer) for layer in layers)
    return {"block_values": in_blocks, "block_rows": num_rows, "other_values": everything - in_blocks}


def _adapter_values(adapter: Adapter, params: TrainParams) -> dict[str, int]:
    places, rank = adapter.attachments(), params.rank
    stand_in = sum(parameter.numel() for parameter in adapter.named_parameters().values())
    if free_kind(params.adapter_type) == params.adapter_type or not kind_named(params.adapter_type).basis.singular:
        return {"trained_values": stand_in, "singular_values": 0}
    directions = sum(rank * _sides(place.layer) for place in places)
    # Beside the vectors of both sides, the products of one of them with the weight.
    return {"trained_values": stand_in - directions + len(places) * rank**2, "singular_values": 2 * directions}


def _sides(layer: AdaptedLayer) -> int:
    """Input and output features together."""
    return sum(layer.matrix().shape)


def encoding_bytes(config: Mapping[str, Any], num_samples: int, dtype: torch.dtype) -> tuple[int, int]:
    """Weights of the autoencoder, and the most it holds beside them while it encodes one clip of this length."""
    with torch.device("meta"):
        autoencoder = Autoencoder(config).to("meta", dtype).eval().requires_grad_(False)
        audio_AL = torch.empty(autoencoder.audio_channels, num_samples, dtype=dtype)
    ledger = Ledger()
    held = [*autoencoder.parameters(), *autoencoder.buffers()]
    ledger.know(held)
    replace_attention(autoencoder, counting_attention(ledger))
    with ledger, torch.no_grad():
        autoencoder.encode_clip(audio_AL)
    return sum(tensor.nbytes for tensor in held), ledger.peak_bytes
