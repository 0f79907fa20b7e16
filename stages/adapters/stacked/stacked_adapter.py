"""Adapted weights of all layers, computed once per step: layers of one shape lie stacked and are worked on at once.

The adapted weight depends on parameters only. Layer by layer its norms cost some seventeen small operations each, and
again in a recomputed layer; stacked, a step needs a handful of batched products per shape. The stacked tensors are what
is trained; each layer's own parameters, by which files and checkpoints know them, are views of them.

L layers of one shape, O out features, I in features, R rank.
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

from stages.adapters.attach import Adapter, Place
from stages.adapters.layer import AdaptedConv1d, AdaptedLayer, Ready, Slot
from stages.adapters.ops.frozen_matmul import can_have_kernels
from stages.adapters.ops.fused_linear import LARGEST_RANK, length_for, width_for
from stages.adapters.ops.side_streams import NUM_FIRST, NUM_LATER, Beside
from stages.adapters.stacked.layer_group import Group, Part, Run, Stacked, adapted_weight, stack, stacked_product
from stages.adapters.stacked.unstack import Share
from stages.errors import InvalidAdapterState

_NUMBER = re.compile(r"\d+")

PartOf = Callable[[str], Part]
"""Where in a step the layer of this name is used."""


def unknown(name: str) -> Part:
    """For layers of which nothing is known."""
    return Part.BEFORE


@dataclass(kw_only=True)
class Together:
    """All layers of one adapter."""

    groups: Sequence[Group]
    homes: dict[nn.Module, tuple[int, int]] = field(init=False)
    """Group and place in it of every layer."""
    run: Run = adapted_weight
    joins: bool = False
    """Whether layers use one product for their weight and their first thin factor (`_joined`)."""
    at_once: bool = False
    """Whether layers that lie side by side are run by `each`, and none of them by itself."""
    beside: Beside | None = None
    """Streams that share the work on a device; None: all on the one that is."""

    def __post_init__(self) -> None:
        self.homes = {
            place.layer: (number, index)
            for number, group in enumerate(self.groups)
            for index, place in enumerate(group.places)
        }

    def stacked(self) -> list[Stacked]:
        """What is trained, in the order of the groups."""
        return [
            Stacked(
                parameter=parameter,
                keys=tuple(f"{place.target.name}.parametrizations.weight.0.{leaf}" for place in group.places),
            )
            for group in self.groups
            for leaf, parameter in group.slot.leaves().items()
        ]

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Within, layers use weights computed on entry; gradients flow through to the stacked tensors."""
        beside = self.beside
        try:
            self._hand_out()
            yield
            if beside is not None:
                beside.end()
        except BaseException:
            if beside is not None:
                beside.give_up()
            raise
        finally:
            for group in self.groups:
                group.take_back()

    def _hand_out(self) -> None:
        """On streams of their own what is needed later: the chain waits for it where it comes to it."""
        beside = self.beside
        if beside is not None:
            beside.begin()
        for part, shared in groupby(dealt(self.groups), key=lambda each: each[0].part):
            for group, number in shared:
                with nullcontext() if beside is None else beside.on(number):
                    group.hand_out(group.compute(self.run, joined=self.joins), at_once=self.at_once)
            if beside is not None:
                beside.mark(part)
        self.reach(Part.BEFORE)

    def reach(self, part: Part) -> None:
        """The step has come to this part: its weights must be there."""
        if self.beside is not None:
            self.beside.reach(part)

    @property
    def dropout(self) -> float:
        """Of the adapter; the -xs kinds have none."""
        return float(getattr(self.groups[0].slot.basis, "dropout", 0.0))

    def masks(self, generator: torch.Generator) -> list[Tensor]:
        """Dropout masks of one step for every group; none without dropout."""
        return [group.draw_masks(generator) for group in self.groups] if self.dropout > 0 else []

    def use_masks(self, masks: Sequence[Tensor]) -> None:
        """Drop out by these, on the device of the weights, until others are given."""
        for group, mask_L1I in zip(self.groups, masks, strict=bool(masks)):
            group.slot.basis.mask_1I = mask_L1I

    def each(self, modules: Sequence[nn.Module], tokens: Tensor) -> Tensor:
        """`[module(tokens) for module in modules]` stacked; all at once where the modules lie side by side.

        Args:
            modules: layers, or sequences of layers and activations, one of each network block.
        """
        if not all(isinstance(module, nn.Sequential) for module in modules):
            return self._each_layer(modules, tokens[None])
        tokens_L = tokens[None]
        for parts in zip(*modules, strict=True):
            # A filter may leave some or all of these layers without an adapter: only activations are one for all.
            tokens_L = parts[0](tokens_L) if _is_activation(parts[0]) else self._each_layer(parts, tokens_L)
        return tokens_L

    def _each_layer(self, layers: Sequence[nn.Module], tokens_L: Tensor) -> Tensor:
        """(L, ..., O) from (L or 1, ..., I)."""
        self.reach(Part.AT_ONCE)
        found = self._at_once(layers)
        if found is None:
            # A filter has left some of them without an adapter.
            for number in {self.homes[layer][0] for layer in layers if layer in self.homes}:
                self.groups[number].single_out()
            tokens = tokens_L.expand(len(layers), *tokens_L.shape[1:])
            return torch.stack([layer(one) for layer, one in zip(layers, tokens, strict=True)])
        group, share, now = found
        flat_LNI = tokens_L.flatten(1, -2)
        bias_LO = group.biases(share) if now.joined_JI is None else None
        out_LNO = stacked_product(flat_LNI, group.weight_LOI[share], now, bias_LO)
        return out_LNO.unflatten(1, tokens_L.shape[1:-1])

    def _at_once(self, layers: Sequence[nn.Module]) -> tuple[Group, slice, Ready] | None:
        """Where these layers lie side by side, and what they use together; None if they do not."""
        found = [self.homes.get(layer) for layer in layers]
        first = found[0]
        if first is None or found != [(first[0], first[1] + step) for step in range(len(layers))]:
            return None
        group, share = self.groups[first[0]], slice(first[1], first[1] + len(layers))
        now = group.at_once.get(share.start) if share in group.shares else None
        return None if now is None else (group, share, now)


def _is_activation(module: nn.Module) -> bool:
    return next(module.parameters(), None) is None


def dealt(groups: Sequence[Group]) -> list[tuple[Group, int]]:
    """In the order of the step, and the largest first, each to the stream that has least to do.

    What comes before the blocks to the chain's own (0) and those of its priority, the rest to the others.
    """
    first, later = range(NUM_FIRST + 1), range(NUM_FIRST + 1, NUM_FIRST + NUM_LATER + 1)
    load = dict.fromkeys([*first, *later], 0)
    found = []
    for group in sorted(groups, key=lambda group: (group.part, -group.weight_LOI.numel())):
        number = min(first if group.part == Part.BEFORE else later, key=lambda stream: load[stream])
        load[number] += group.weight_LOI.numel()
        found.append((group, number))
    return found


def together(adapter: Adapter, part_of: PartOf = unknown, *, room: bool | None = None) -> Together:
    """Stack the tensors of an adapter's layers, by part of the step and shape; the layers' own become views of them.

    Nothing changes in value. The adapter must be the only one on its layers.

    Args:
        room: leave some behind every weight, so that products can be joined; None: where that pays.

    Raises:
        InvalidAdapterState: another adapter is on one of the layers.
    """
    shared = [place.target.name for place in adapter.places() if len(place.layer.stack()) > 1]
    if shared:
        raise InvalidAdapterState(f"another adapter is on {shared[0]} as well", "Merge or detach it first.")
    groups: dict[tuple[Any, ...], list[Place]] = {}
    for place in sorted(adapter.places(), key=_role):
        alike = (part_of(place.target.name), *place.layer.matrix().shape, isinstance(place.layer, AdaptedConv1d))
        groups.setdefault(alike, []).append(place)
    return Together(groups=[_group(places, alike[0], room) for alike, places in groups.items()])


def _shares(places: Sequence[Place], part: Part) -> list[Share]:
    """Neighbours of one role that are used at once; every other layer by itself."""
    shares: list[Share] = []
    for _, found in groupby(enumerate(places), key=lambda numbered: _role(numbered[1])):
        numbers = [number for number, _ in found]
        shares += [slice(numbers[0], numbers[-1] + 1)] if part == Part.AT_ONCE else numbers
    return shares


def _role(place: Place) -> str:
    return _NUMBER.sub("#", place.target.name) if place.target.name.count(".") > 1 else place.target.name


@torch.no_grad()
def _group(places: Sequence[Place], part: Part, room: bool | None) -> Group:
    layers = [place.layer for place in places]
    joined_LJI, weight_LOI = _room(places, pays(places) if room is None else room)
    for layer, place_OI in zip(layers, weight_LOI, strict=True):
        layer.move_weight(place_OI)
    return Group(
        places=places,
        weight_LOI=weight_LOI,
        joined_LJI=joined_LJI,
        bias_LJ=None if joined_LJI is None else _bias_beside(joined_LJI, layers),
        row_squares_LO=stack([layer.row_squares_O for layer in layers]),
        column_squares_LI=stack([layer.column_squares_I for layer in layers]),
        slot=_stacked_slot([place.slot for place in places]),
        shares=_shares(places, part),
        part=part,
    )


def pays(places: Sequence[Place]) -> bool:
    """Whether joined products are the faster ones: where their kernels are, 16 bits on CUDA, ranks of a tile."""
    weight = places[0].layer.weight
    return weight.is_cuda and weight.itemsize == 2 and places[0].slot.rank <= LARGEST_RANK and can_have_kernels()


def _room(places: Sequence[Place], joins: bool) -> tuple[Tensor | None, Tensor]:
    """Memory for the weights, and that with some rows behind each, where products are to be joined."""
    layer, (num_out, num_in) = places[0].layer, places[0].layer.matrix().shape
    if not joins:
        return None, layer.matrix().new_empty(len(places), num_out, num_in)
    joined_LJI = layer.matrix().new_zeros(len(places), num_out + width_for(places[0].slot.rank), length_for(num_in))
    return joined_LJI, joined_LJI[:, :num_out, :num_in]


def _bias_beside(joined_LJI: Tensor, layers: Sequence[AdaptedLayer]) -> Tensor | None:
    """(L, J): each layer's bias, zeros behind it and in place of one that is not there."""
    if all(layer.bias is None for layer in layers):
        return None
    bias_LJ = joined_LJI.new_zeros(joined_LJI.shape[:2])
    for layer, place_J in zip(layers, bias_LJ, strict=True):
        if layer.bias is not None:
            place_J[: len(layer.bias)] = layer.bias
    return bias_LJ


def _stacked_slot(slots: Sequence[Slot]) -> Slot:
    """One slot whose tensors are those of all slots, which from now on are views of its own."""
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
