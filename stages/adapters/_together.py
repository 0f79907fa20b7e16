"""Adapted weights of all layers, computed once per step: layers of one shape lie stacked and are worked on at once.

The adapted weight depends on parameters only. Layer by layer its norms cost some seventeen small operations each, and
again in a recomputed layer; stacked, a step needs a handful of batched products per shape. The stacked tensors are what
is trained; each layer's own parameters, by which files and checkpoints know them, are views of them.

L layers of one shape, O out features, I in features, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stages.adapters._base import Adapter, Place
from stages.adapters._factored import Factored
from stages.adapters._frozen import can_have_kernels
from stages.adapters._joined import LARGEST_RANK, joined_products, width_for
from stages.adapters._layer import AdaptedConv1d, AdaptedLayer, Ready, Slot
from stages.errors import AdapterOrder

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class Stacked:
    """A trained tensor that holds one tensor of each of several layers along its first dimension."""

    parameter: nn.Parameter
    keys: tuple[str, ...]
    """File keys, in that order."""
    bare: bool = False
    """It is the tensor of its one key itself, without a dimension for layers."""


Run = Callable[[Slot, Factored], Ready]


def adapted_weight(slot: Slot, base: Factored) -> Ready:
    """What a (stacked) slot makes of the base weight."""
    return slot.alone(base, base.weight_OI.dtype)


def stacked_product(tokens_LNI: Tensor, weight_LOI: Tensor, now: Ready, bias_LO: Tensor | None) -> Tensor:
    """What `AdaptedLayer.forward` does, for a stack of layers; tokens may be one for all, (1, N, I)."""
    tokens_LNI = tokens_LNI.expand(len(weight_LOI), -1, -1)
    scaled_LNI = tokens_LNI if now.q_I is None else (tokens_LNI * now.q_I[:, None]).to(tokens_LNI.dtype)
    if now.joined_JI is not None:
        return joined_products(scaled_LNI, now.joined_JI, now.left_OR, now.right_RI, now.p_O, now.bias_J)
    if bias_LO is None:
        out_LNO = torch.bmm(scaled_LNI, weight_LOI.mT)
    else:
        out_LNO = torch.baddbmm(bias_LO[:, None], scaled_LNI, weight_LOI.mT)
    if now.left_OR is not None and now.right_RI is not None:
        out_LNO = out_LNO + torch.bmm(torch.bmm(scaled_LNI, now.right_RI.mT), now.left_OR.mT)
    if now.p_O is None:
        return out_LNO
    # As for one layer: p (W x) + b from W x + b, rounded once.
    whole_LNO = out_LNO * now.p_O[:, None]
    whole_LNO = whole_LNO if bias_LO is None else whole_LNO + (bias_LO * (1 - now.p_O))[:, None]
    return whole_LNO.to(out_LNO.dtype)


@dataclass(kw_only=True)
class Group:
    """Layers of one shape. Layers of one role (the same but for numbers in their names) are neighbours."""

    places: Sequence[Place]
    weight_LOI: Tensor
    row_squares_LO: Tensor | None
    column_squares_LI: Tensor | None
    slot: Slot
    """All layers' slots as one, with stacked tensors."""
    joined_LJI: Tensor | None = None
    """The weights with some rows behind each, which `compute` fills with the factor that tokens meet first."""
    bias_LJ: Tensor | None = None
    """Beside it, the biases and zeros; None where no layer has one."""
    ready: Ready | None = None

    def compute(self, run: Run, *, joined: bool) -> Ready:
        """The adapted weights as they are now, thin factors in the dtype of the weights."""
        first = self.places[0].slot
        self.slot.strength = first.strength
        self.slot.train(first.training)
        whole = Factored(
            weight_OI=self.weight_LOI,
            row_squares_O=self.row_squares_LO,
            column_squares_I=self.column_squares_LI,
        )
        ready = run(self.slot, whole)
        return self._joined(ready) if joined else ready

    def _joined(self, ready: Ready) -> Ready:
        """With the thin factor behind the weights, if there is room for it."""
        if self.joined_LJI is None or ready.right_RI is None:
            return ready
        num_out, rank = self.weight_LOI.shape[1], ready.right_RI.shape[1]
        # Through `data`: products that the backward needs again hold these weights, whose own rows are not written to.
        self.joined_LJI.data[:, num_out : num_out + rank].copy_(ready.right_RI.detach())
        return ready._replace(joined_JI=self.joined_LJI, bias_J=self.bias_LJ)

    def biases(self, part: slice) -> Tensor | None:
        """(L, O) of some of the layers; None without."""
        return _stack([place.layer.bias for place in self.places[part]])

    def draw_masks(self, generator: torch.Generator) -> Tensor:
        """(L, 1, I) dropout masks of one step, float32, on the CPU."""
        layers, _, num_in = self.weight_LOI.shape
        kept = 1.0 - self.slot.basis.dropout
        return torch.bernoulli(torch.full((layers, 1, num_in), kept), generator=generator) / kept


@dataclass(kw_only=True)
class Together:
    """All layers of one adapter."""

    groups: Sequence[Group]
    homes: dict[nn.Module, tuple[int, int]] = field(init=False)
    """Group and place in it of every layer."""
    run: Run = adapted_weight
    joins: bool = False
    """Whether layers use one product for their weight and their first thin factor (`_joined`)."""

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
        for group in self.groups:
            group.ready = group.compute(self.run, joined=self.joins)
            for place, one in zip(group.places, group.ready.one_by_one(len(group.places)), strict=True):
                place.layer.ready = one.without_bias() if place.layer.bias is None else one
        try:
            yield
        finally:
            for group in self.groups:
                group.ready = None
                for place in group.places:
                    place.layer.ready = None

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
        span = self._span(layers)
        if span is None:
            tokens = tokens_L.expand(len(layers), *tokens_L.shape[1:])
            return torch.stack([layer(one) for layer, one in zip(layers, tokens, strict=True)])
        group, part = span
        assert group.ready is not None, "asked for outside `ready`"
        now = group.ready.part(part) if layers[0].bias is not None else group.ready.part(part).without_bias()
        flat_LNI = tokens_L.flatten(1, -2)
        bias_LO = group.biases(part) if now.joined_JI is None else None
        out_LNO = stacked_product(flat_LNI, group.weight_LOI[part], now, bias_LO)
        return out_LNO.unflatten(1, tokens_L.shape[1:-1])

    def _span(self, layers: Sequence[nn.Module]) -> tuple[Group, slice] | None:
        """Where these layers lie side by side; None if they do not."""
        found = [self.homes.get(layer) for layer in layers]
        first = found[0]
        if first is None or found != [(first[0], first[1] + step) for step in range(len(layers))]:
            return None
        return self.groups[first[0]], slice(first[1], first[1] + len(layers))


def _is_activation(module: nn.Module) -> bool:
    return next(module.parameters(), None) is None


def together(adapter: Adapter, *, room: bool | None = None) -> Together:
    """Stack the tensors of an adapter's layers, by shape, and let the layers' own tensors be views of the stacks.

    Nothing changes in value. The adapter must be the only one on its layers.

    Args:
        room: leave some behind every weight, so that products can be joined; None: where that pays.

    Raises:
        AdapterOrder: another adapter is on one of the layers.
    """
    shared = [place.target.name for place in adapter.places() if len(place.layer.stack()) > 1]
    if shared:
        raise AdapterOrder(f"another adapter is on {shared[0]} as well", "Merge or detach it first.")
    groups: dict[tuple[int, ...], list[Place]] = {}
    for place in sorted(adapter.places(), key=_role):
        groups.setdefault((*place.layer.matrix().shape, isinstance(place.layer, AdaptedConv1d)), []).append(place)
    return Together(groups=[_group(places, room) for places in groups.values()])


def _role(place: Place) -> str:
    return _NUMBER.sub("#", place.target.name) if place.target.name.count(".") > 1 else place.target.name


@torch.no_grad()
def _group(places: Sequence[Place], room: bool | None) -> Group:
    layers = [place.layer for place in places]
    joined_LJI, weight_LOI = _room(places, pays(places) if room is None else room)
    for layer, place_OI in zip(layers, weight_LOI, strict=True):
        layer.move_weight(place_OI)
    return Group(
        places=places,
        weight_LOI=weight_LOI,
        joined_LJI=joined_LJI,
        bias_LJ=None if joined_LJI is None else _bias_beside(joined_LJI, layers),
        row_squares_LO=_stack([layer.row_squares_O for layer in layers]),
        column_squares_LI=_stack([layer.column_squares_I for layer in layers]),
        slot=_stacked_slot([place.slot for place in places]),
    )


def pays(places: Sequence[Place]) -> bool:
    """Whether joined products are the faster ones: where their kernels are, 16 bits on CUDA, ranks of a tile."""
    weight = places[0].layer.weight
    return weight.is_cuda and weight.itemsize == 2 and places[0].slot.rank <= LARGEST_RANK and can_have_kernels()


def _room(places: Sequence[Place], joins: bool) -> tuple[Tensor | None, Tensor]:
    """Memory for the weights, and that with some rows behind each, where products are to be joined."""
    layer, (num_out, num_in) = places[0].layer, places[0].layer.matrix().shape
    if not joins or isinstance(layer, AdaptedConv1d):
        return None, layer.matrix().new_empty(len(places), num_out, num_in)
    joined_LJI = layer.matrix().new_zeros(len(places), num_out + width_for(places[0].slot.rank), num_in)
    return joined_LJI, joined_LJI[:, :num_out]


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


def _stack(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None
