"""Put adapters on a network and take them off again; the loop, the losses and the file format see an `Adapter` only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from stages.adapters.basis import Start
from stages.adapters.kind import Kind, kind_named
from stages.adapters.layer import AdaptedLayer, Slot, adapted
from stages.adapters.layer_filter import selected
from stages.adapters.quantized_layer import StoredSmall, WidenedLayer
from stages.adapters.singular_vectors import Bases, BasesCache, bases_of, given_bases
from stages.adapters.target_layers import spec_rank_limit
from stages.errors import AdapterMismatch, AdapterNotWritable, InvalidAdapterState
from stages.records import AdapterSpec


@dataclass(frozen=True, kw_only=True)
class Target:
    """A layer found in a network."""

    name: str
    """Relative to its root."""
    parent: nn.Module
    child: str
    layer: nn.Module


@dataclass(frozen=True, kw_only=True)
class Place:
    """One adapter's slot on one layer."""

    target: Target
    layer: AdaptedLayer
    slot: Slot


class Adapter:
    """The handle of one adapter on a network. Several may be stacked; each is addressed by its own handle.

    A new adapter is in training mode, whatever mode the frozen network is in: see `train`.
    """

    def __init__(self, spec: AdapterSpec, places: Sequence[Place]) -> None:
        self.spec = spec
        self._places = list(places)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Trained tensors by file key, in the order of the roots and of module registration."""
        return {
            f"{place.target.name}.parametrizations.weight.0.{leaf}": parameter
            for place in self._attached()
            for leaf, parameter in place.slot.leaves().items()
        }

    def places(self) -> list[Place]:
        """The layers it is on, and its part on each, in the order of its parameters."""
        return list(self._attached())

    def layer_names(self) -> list[str]:
        """Layers it is on, relative to their roots."""
        return [place.target.name for place in self._attached()]

    def state(self) -> dict[str, Tensor]:
        """Copies of the trained tensors by file key: float32, on the CPU."""
        return {
            key: parameter.detach().to("cpu", torch.float32, copy=True)
            for key, parameter in self.named_parameters().items()
        }

    def load(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        """Take over trained tensors, all or none.

        Args:
            tensors: by file key, any float dtype, any device.
            origin: the file or checkpoint, for the message.

        Raises:
            AdapterMismatch: lists every missing, extra, misshapen or non-finite tensor.
        """
        wanted = self.named_parameters()
        faults = [f"missing: {key} {tuple(wanted[key].shape)}" for key in wanted if key not in tensors]
        faults += [f"extra: {key} {tuple(tensors[key].shape)}" for key in tensors if key not in wanted]
        for key in wanted.keys() & tensors.keys():
            if tensors[key].shape != wanted[key].shape:
                faults.append(f"misshapen: {key} is {tuple(tensors[key].shape)}, expected {tuple(wanted[key].shape)}")
            elif not tensors[key].isfinite().all():
                faults.append(f"not finite: {key}")
        if faults:
            raise AdapterMismatch(origin, sorted(faults))
        with torch.no_grad():
            for key, parameter in wanted.items():
                parameter.copy_(tensors[key])

    def set_strength(self, strength: float) -> None:
        """Multiply the low-rank move by this from now on; 1 at first.

        Exactly 0 gives the base back. Kinds with magnitudes jump there: at any other their lengths count in full.
        """
        if not math.isfinite(strength):
            raise ValueError(f"strength must be a finite number; got {strength}")
        for place in self._attached():
            place.slot.strength = float(strength)

    def train(self, mode: bool = True) -> None:
        """Switch this adapter's dropout on, or off for previews and validation."""
        for place in self._attached():
            place.slot.train(mode)

    def detach(self) -> None:
        """Take the adapter off. A layer left without adapters is the very module that stood there before."""
        for place in self._attached():
            _remove(place)
        self._places = []

    def merge(self) -> None:
        """Write the adapter at its present strength into the base weights, rounded to their dtype, and take it off.

        Raises:
            InvalidAdapterState: an adapter attached earlier is on one of its layers; nothing was changed.
            AdapterNotWritable: a merged weight is beyond the range of its dtype; nothing was changed.
        """
        places = self._attached()
        self.train(False)  # lest a dropout mask be merged
        beyond = [place.target.name for place in places if not place.layer.merge(place.slot, only_check=True)]
        if beyond:
            precision = str(places[0].layer.weight.dtype).removeprefix("torch.")
            raise AdapterNotWritable("the merged base", precision, too_large=beyond)
        for place in places:
            place.layer.merge(place.slot)
        self.detach()

    def _attached(self) -> list[Place]:
        if not self._places:
            raise InvalidAdapterState(
                "the adapter was taken off already", "Attach a new one and load the values into it."
            )
        return self._places


def attach(
    roots: Sequence[nn.Module],
    spec: AdapterSpec,
    *,
    generator: torch.Generator | None = None,
    bases: Mapping[str, Mapping[str, Tensor]] | None = None,
    bases_cache: BasesCache | None = None,
) -> Adapter:
    """Put a new adapter on the Linear and Conv1d layers of some networks, and freeze everything else in them.

    At strength 1 and before any training the networks give what they gave, to rounding. The layers' weights keep their
    names. Cast the networks to the base precision and move them to their device first. On layers that carry adapters
    already the new one is stacked on top.

    Args:
        roots: the denoiser and the conditioner; layer names are relative to each.
        generator: draws the start of the free kinds; None: torch's global CPU generator.
        bases: singular vectors for the -xs kinds, used as they are; see `_svd.given_bases`.
        bases_cache: where computed singular vectors are remembered.

    Raises:
        FilterMatchesNothing: an include or exclude pattern matches no layer, or no layer is left.
        RankTooLarge: an -xs rank above the smallest dimension of the layers.
        LayerNotAdaptable: a targeted convolution has a kernel larger than 1.
        AdapterMismatch: `bases` does not cover the layers.
        ValueError: the spec contradicts itself.
    """
    kind = _checked_kind(spec, bases)
    found = _layers_of(roots)
    shapes = {name: _shape(target.layer) for name, target in found.items()}
    spec_rank_limit(spec, shapes)
    targets = [found[name] for name in selected(found, spec.include, spec.exclude)]
    layers = [_adapted(target) for target in targets]
    needed = {} if bases is None else {target.name: shapes[target.name] for target in targets}
    known = given_bases(bases or {}, needed, spec.rank)
    slots = []
    for target, layer in zip(targets, layers, strict=True):
        weight_OI = layer.matrix()
        vectors = known.get(target.name)
        if kind.basis.singular and vectors is None:
            vectors = _vectors(layer, spec.rank, bases_cache)
        start = Start(weight_OI=weight_OI, rank=spec.rank, dropout=spec.dropout, generator=generator, bases=vectors)
        slots.append(Slot(kind, start, spec.scaling))
    # Nothing was changed so far, and nothing below can fail: no network is left with half an adapter.
    _freeze(roots)
    places = [Place(target=t, layer=layer, slot=slot) for t, layer, slot in zip(targets, layers, slots, strict=True)]
    for place in places:
        _install(place)
    return Adapter(spec, places)


def _checked_kind(spec: AdapterSpec, bases: object) -> Kind:
    kind = kind_named(spec.kind)
    if spec.rank < 1:
        raise ValueError(f"rank must be at least 1; got {spec.rank}")
    if kind.basis.singular and spec.dropout > 0:
        raise ValueError(f"adapter_dropout must be 0 for {spec.kind}: its directions are frozen; got {spec.dropout}")
    if bases is not None and not kind.basis.singular:
        raise ValueError(f"singular vectors were given for {spec.kind}, which uses none")
    return kind


def _layers_of(roots: Sequence[nn.Module]) -> dict[str, Target]:
    """Layers of all roots by name; file keys tell the roots apart by these names alone."""
    found: dict[str, Target] = {}
    for target in (target for root in roots for target in _layers(root)):
        if target.name in found:
            raise ValueError(f"two of the networks have a layer called {target.name}")
        found[target.name] = target
    return found


def _layers(root: nn.Module) -> Iterator[Target]:
    """Linear and Conv1d leaves, and those that carry adapters already, in registration order."""
    for name, module in root.named_modules():
        if name and isinstance(module, (nn.Linear, nn.Conv1d, AdaptedLayer)):
            above, _, child = name.rpartition(".")
            yield Target(name=name, parent=root.get_submodule(above), child=child, layer=module)


def _adapted(target: Target) -> AdaptedLayer:
    layer = target.layer
    return WidenedLayer(layer) if isinstance(layer, StoredSmall) else adapted(target.name, layer)


def _vectors(layer: AdaptedLayer, rank: int, cache: BasesCache | None) -> Bases:
    return layer.vectors(rank) if isinstance(layer, WidenedLayer) else bases_of(layer.matrix(), rank, cache)


def _shape(layer: nn.Module) -> tuple[int, int]:
    shape = cast(Tensor, layer.weight).shape
    return shape[0], math.prod(shape[1:])


def _freeze(roots: Sequence[nn.Module]) -> None:
    """Only adapters are trained."""
    for root in roots:
        trained = {id(p) for module in root.modules() if isinstance(module, Slot) for p in module.parameters()}
        for parameter in root.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)


def _install(place: Place) -> None:
    place.layer.set_slots([*place.layer.stack(), place.slot])
    setattr(place.target.parent, place.target.child, place.layer)


def _remove(place: Place) -> None:
    rest = [slot for slot in place.layer.stack() if slot is not place.slot]
    place.layer.set_slots(rest)
    if not rest:
        setattr(place.target.parent, place.target.child, place.layer.base())
