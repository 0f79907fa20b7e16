"""An adapter's layers stacked by shape, so that all adapted weights of a training step are computed in a few batches.

The adapted weight depends on parameters only. Layer by layer its norms cost some seventeen small operations each, and
again in a recomputed layer; stacked, a step needs a handful of batched products per shape. The stacked tensors are what
is trained; each layer's own parameters, by which files and checkpoints know them, are views of them.

Letters: L layers of one shape, O output features, I input features, J rows of a joined weight [W; A].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from stages.adapters.attach import Adapter, Attachment
from stages.adapters.layer import AdaptedConv1d, AdaptedLayer, AdaptedWeight, Slot
from stages.adapters.ops.frozen_matmul import has_triton
from stages.adapters.ops.fused_linear import MAX_RANK, num_factor_rows, padded_length
from stages.adapters.ops.side_streams import NUM_BLOCK_STREAMS, NUM_PRIORITY_STREAMS, SideStreams
from stages.adapters.stacked.layer_group import (
    LayerGroup,
    StackedParameter,
    StepPhase,
    WeightFunction,
    adapted_weight,
    stacked_or_none,
    stacked_product,
)
from stages.adapters.stacked.unstack import LayerSlice
from stages.errors import InvalidAdapterState

_NUMBER = re.compile(r"\d+")

PhaseOf = Callable[[str], StepPhase]
"""The phase of a step in which the layer of this name is used."""


def before_blocks(name: str) -> StepPhase:
    """The `PhaseOf` of networks without blocks."""
    return StepPhase.BEFORE_BLOCKS


@dataclass(kw_only=True)
class StackedAdapter:
    """All layers of one adapter, in groups of one shape."""

    groups: Sequence[LayerGroup]
    positions: dict[nn.Module, tuple[int, int]] = field(init=False)
    """Group of every layer, and its index there."""
    compute_weight: WeightFunction = adapted_weight
    joins_products: bool = False
    """Whether layers compute W x and A x in one product with [W; A] (`fused_linear`)."""
    batches_blocks: bool = False
    """Whether neighbouring layers of the blocks are run by `run_each`, and none of them by itself."""
    side_streams: SideStreams | None = None
    """CUDA streams that share the work; None: all of it goes to the current stream."""

    def __post_init__(self) -> None:
        self.positions = {
            attachment.layer: (number, index)
            for number, group in enumerate(self.groups)
            for index, attachment in enumerate(group.attachments)
        }

    def stacked_parameters(self) -> list[StackedParameter]:
        """What is trained, in the order of the groups."""
        return [
            StackedParameter(
                parameter=parameter,
                keys=tuple(attachment.key(leaf) for attachment in group.attachments),
            )
            for group in self.groups
            for leaf, parameter in group.slot.leaves().items()
        ]

    @contextmanager
    def precomputed(self) -> Iterator[None]:
        """Context in which layers use adapted weights computed on entry; gradients flow to the stacked parameters."""
        streams = self.side_streams
        try:
            self._compute_and_distribute()
            yield
            if streams is not None:
                streams.join()
        except BaseException:
            if streams is not None:
                streams.abandon()
            raise
        finally:
            for group in self.groups:
                group.clear()

    def _compute_and_distribute(self) -> None:
        """Weights of later phases are computed on side streams: the main stream waits where it gets to them."""
        streams = self.side_streams
        if streams is not None:
            streams.fork()
        for phase, assigned in groupby(assigned_streams(self.groups), key=lambda pair: pair[0].phase):
            for group, number in assigned:
                with nullcontext() if streams is None else streams.stream(number):
                    weight = group.compute(self.compute_weight, joined=self.joins_products)
                    group.distribute(weight, batched=self.batches_blocks)
            if streams is not None:
                streams.mark_computed(phase)
        self.wait_for_phase(StepPhase.BEFORE_BLOCKS)

    def wait_for_phase(self, phase: StepPhase) -> None:
        """Called where the step enters a phase: let the current stream wait for the weights of its layers."""
        if self.side_streams is not None:
            self.side_streams.wait_for_phase(phase)

    @property
    def dropout(self) -> float:
        """The adapter's dropout probability; the -xs kinds have none."""
        return float(getattr(self.groups[0].slot.basis, "dropout", 0.0))

    def dropout_masks(self, generator: torch.Generator) -> list[Tensor]:
        """Dropout masks of one step, one per group; an empty list without dropout."""
        return [group.draw_dropout_mask(generator) for group in self.groups] if self.dropout > 0 else []

    def set_dropout_masks(self, masks: Sequence[Tensor]) -> None:
        """Use these masks, on the device of the weights, until others are set."""
        for group, mask_L1I in zip(self.groups, masks, strict=bool(masks)):
            group.slot.basis.fixed_mask_1I = mask_L1I

    def run_each(self, modules: Sequence[nn.Module], tokens: Tensor) -> Tensor:
        """`[module(tokens) for module in modules]` stacked; computed as a batch where the layers are neighbours.

        Args:
            modules: layers, or sequences of layers and activations, one of each network block.
        """
        if not all(isinstance(module, nn.Sequential) for module in modules):
            return self._run_each_layer(modules, tokens[None])
        tokens_L = tokens[None]
        for parts in zip(*modules, strict=True):
            # Without adapters on these layers only activations can be applied to the batch as a whole.
            tokens_L = parts[0](tokens_L) if _is_activation(parts[0]) else self._run_each_layer(parts, tokens_L)
        return tokens_L

    def _run_each_layer(self, layers: Sequence[nn.Module], tokens_L: Tensor) -> Tensor:
        """(L, ..., O) from (L or 1, ..., I)."""
        self.wait_for_phase(StepPhase.BATCHED_BLOCKS)
        found = self._batch_of(layers)
        if found is None:
            # include or exclude has left some of them without an adapter.
            for number in {self.positions[layer][0] for layer in layers if layer in self.positions}:
                self.groups[number].unbatch()
            tokens = tokens_L.expand(len(layers), *tokens_L.shape[1:])
            return torch.stack([layer(one) for layer, one in zip(layers, tokens, strict=True)])
        group, indices, weight = found
        flat_LMI = tokens_L.flatten(1, -2)
        bias_LO = group.biases(indices) if weight.joined_JI is None else None
        out_LMO = stacked_product(flat_LMI, group.weight_LOI[indices], weight, bias_LO)
        return out_LMO.unflatten(1, tokens_L.shape[1:-1])

    def _batch_of(self, layers: Sequence[nn.Module]) -> tuple[LayerGroup, slice, AdaptedWeight] | None:
        """Group, indices and adapted weight of these layers as a batch; None if they are not one."""
        found = [self.positions.get(layer) for layer in layers]
        first = found[0]
        if first is None or found != [(first[0], first[1] + step) for step in range(len(layers))]:
            return None
        group, indices = self.groups[first[0]], slice(first[1], first[1] + len(layers))
        weight = group.batched.get(indices.start) if indices in group.slices else None
        return None if weight is None else (group, indices, weight)


def _is_activation(module: nn.Module) -> bool:
    return next(module.parameters(), None) is None


def assigned_streams(groups: Sequence[LayerGroup]) -> list[tuple[LayerGroup, int]]:
    """Groups by phase, the largest first, each with the number of the stream that has least to do.

    Weights used before the blocks go to the main stream (0) and the high-priority ones, all others to the rest.
    """
    first, later = (
        range(NUM_PRIORITY_STREAMS + 1),
        range(NUM_PRIORITY_STREAMS + 1, NUM_PRIORITY_STREAMS + NUM_BLOCK_STREAMS + 1),
    )
    load = dict.fromkeys([*first, *later], 0)
    found = []
    for group in sorted(groups, key=lambda group: (group.phase, -group.weight_LOI.numel())):
        number = min(first if group.phase == StepPhase.BEFORE_BLOCKS else later, key=lambda stream: load[stream])
        load[number] += group.weight_LOI.numel()
        found.append((group, number))
    return found


def stack_adapter(
    adapter: Adapter, phase_of: PhaseOf = before_blocks, *, spare_rows: bool | None = None
) -> StackedAdapter:
    """Stack the tensors of an adapter's layers by phase and shape; the layers' own tensors become views of the stacks.

    No value changes. The adapter must be the only one on its layers.

    Args:
        phase_of: phase of the step in which each layer is used, by its name.
        spare_rows: allocate rows behind every weight for a joined product; None: where that is faster.

    Raises:
        InvalidAdapterState: another adapter is on one of the layers.
    """
    attachments = adapter.attachments()
    shared = [one.target.name for one in attachments if len(one.layer.attached_slots()) > 1]
    if shared:
        raise InvalidAdapterState(f"another adapter is on {shared[0]} as well", "Merge or detach it first.")
    groups: dict[tuple[Any, ...], list[Attachment]] = {}
    for one in sorted(attachments, key=_role):
        alike = (phase_of(one.target.name), *one.layer.matrix().shape, isinstance(one.layer, AdaptedConv1d))
        groups.setdefault(alike, []).append(one)
    return StackedAdapter(groups=[_group(members, alike[0], spare_rows) for alike, members in groups.items()])


def _slices(attachments: Sequence[Attachment], phase: StepPhase) -> list[LayerSlice]:
    """Neighbours of one role as one slice where they are run as a batch; every other layer by itself."""
    slices: list[LayerSlice] = []
    for _, found in groupby(enumerate(attachments), key=lambda numbered: _role(numbered[1])):
        numbers = [number for number, _ in found]
        slices += [slice(numbers[0], numbers[-1] + 1)] if phase == StepPhase.BATCHED_BLOCKS else numbers
    return slices


def _role(attachment: Attachment) -> str:
    """The layer's name without its numbers: the same for corresponding layers of all blocks."""
    name = attachment.target.name
    return _NUMBER.sub("#", name) if name.count(".") > 1 else name


@torch.no_grad()
def _group(attachments: Sequence[Attachment], phase: StepPhase, spare_rows: bool | None) -> LayerGroup:
    layers = [attachment.layer for attachment in attachments]
    joins = joining_is_faster(attachments) if spare_rows is None else spare_rows
    joined_LJI, weight_LOI = _weight_memory(attachments, joins)
    for layer, memory_OI in zip(layers, weight_LOI, strict=True):
        layer.relocate_weight(memory_OI)
    return LayerGroup(
        attachments=attachments,
        weight_LOI=weight_LOI,
        joined_LJI=joined_LJI,
        bias_LJ=None if joined_LJI is None else _joined_bias(joined_LJI, layers),
        row_squares_LO=stacked_or_none([layer.row_squares_O for layer in layers]),
        column_squares_LI=stacked_or_none([layer.column_squares_I for layer in layers]),
        slot=_stacked_slot([attachment.slot for attachment in attachments]),
        slices=_slices(attachments, phase),
        phase=phase,
    )


def joining_is_faster(attachments: Sequence[Attachment]) -> bool:
    """Whether joined products are faster: Triton kernels are available, 16 bits on CUDA, ranks that fit a tile."""
    weight = attachments[0].layer.weight
    return weight.is_cuda and weight.itemsize == 2 and attachments[0].slot.rank <= MAX_RANK and has_triton()


def _weight_memory(attachments: Sequence[Attachment], joins: bool) -> tuple[Tensor | None, Tensor]:
    """Empty memory: for [W; A] of every layer, (L, J, padded I), None unless joined; and its part for W, (L, O, I)."""
    layer, (num_out, num_in) = attachments[0].layer, attachments[0].layer.matrix().shape
    if not joins:
        return None, layer.matrix().new_empty(len(attachments), num_out, num_in)
    num_rows = num_out + num_factor_rows(attachments[0].slot.rank)
    joined_LJI = layer.matrix().new_zeros(len(attachments), num_rows, padded_length(num_in))
    return joined_LJI, joined_LJI[:, :num_out, :num_in]


def _joined_bias(joined_LJI: Tensor, layers: Sequence[AdaptedLayer]) -> Tensor | None:
    """Each layer's bias followed by zeros, (L, J), zeros for layers without; None if no layer has one."""
    if all(layer.bias is None for layer in layers):
        return None
    bias_LJ = joined_LJI.new_zeros(joined_LJI.shape[:2])
    for layer, bias_J in zip(layers, bias_LJ, strict=True):
        if layer.bias is not None:
            bias_J[: len(layer.bias)] = layer.bias
    return bias_LJ


def _stacked_slot(slots: Sequence[Slot]) -> Slot:
    """One slot with the tensors of all slots stacked; the slots' own tensors become views of them."""
    whole = deepcopy(slots[0])
    for part in ("basis", "magnitude"):
        ones = [getattr(slot, part) for slot in slots]
        stacked = getattr(whole, part)
        for name, first in [*ones[0].named_parameters(), *ones[0].named_buffers()]:
            values = torch.stack([getattr(one, name).detach() for one in ones])
            setattr(stacked, name, nn.Parameter(values) if isinstance(first, nn.Parameter) else values)
            for one, value in zip(ones, values, strict=True):
                getattr(one, name).data = value
    return whole
