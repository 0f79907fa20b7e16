"""Attaching adapters to a network and detaching them; training and files deal with the `Adapter` handle only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from stages.adapters.basis import LayerInit
from stages.adapters.kind import Kind, kind_named
from stages.adapters.layer import AdaptedLayer, Slot, as_adapted_layer
from stages.adapters.layer_filter import selected
from stages.adapters.quantized_layer import AdaptedQuantizedLayer, QuantizedLayer
from stages.adapters.singular_vectors import (
    SingularVectorCache,
    SingularVectors,
    leading_singular_vectors,
    singular_vectors_from,
)
from stages.adapters.target_layers import spec_rank_limit
from stages.errors import AdapterMismatch, AdapterNotWritable, InvalidAdapterState
from stages.records import AdapterSpec


@dataclass(frozen=True, kw_only=True)
class Target:
    """A layer of a network that can carry an adapter."""

    name: str
    """Relative to its root."""
    parent: nn.Module
    child: str
    layer: nn.Module


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """One layer that an adapter is attached to, and the adapter's slot on it."""

    target: Target
    layer: AdaptedLayer
    slot: Slot

    def key(self, leaf: str) -> str:
        """File key of one of the slot's tensors: `model.project_in.parametrizations.weight.0.lora_A`."""
        return f"{self.target.name}.parametrizations.weight.0.{leaf}"


class Adapter:
    """Handle of one adapter on a network. Several may be attached on top of each other; each has its own handle.

    A new adapter is in training mode, whatever mode the frozen network is in: see `train`.
    """

    def __init__(self, spec: AdapterSpec, attachments: Sequence[Attachment]) -> None:
        self.spec = spec
        self._attachments = list(attachments)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Trained tensors by file key, in the order of the roots and of module registration."""
        return {
            attachment.key(leaf): parameter
            for attachment in self._attached()
            for leaf, parameter in attachment.slot.leaves().items()
        }

    def attachments(self) -> list[Attachment]:
        """The layers it is attached to, with its slot on each, in the order of its parameters."""
        return list(self._attached())

    def layer_names(self) -> list[str]:
        """Names of the layers it is attached to, relative to their roots."""
        return [attachment.target.name for attachment in self._attached()]

    def state(self) -> dict[str, Tensor]:
        """Copies of the trained tensors by file key: float32, on the CPU."""
        return {
            key: parameter.detach().to("cpu", torch.float32, copy=True)
            for key, parameter in self.named_parameters().items()
        }

    def load(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        """Load trained tensors, all or none.

        Args:
            tensors: by file key, any float dtype, any device.
            origin: the file or checkpoint, for error messages.

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
        """Multiply the low-rank update by this from now on; 1 at first.

        Exactly 0 gives the base output. Kinds with magnitudes jump there: at any other strength those count in full.
        """
        if not math.isfinite(strength):
            raise ValueError(f"strength must be a finite number; got {strength}")
        for attachment in self._attached():
            attachment.slot.strength = float(strength)

    def train(self, mode: bool = True) -> None:
        """Turn this adapter's dropout on, or off for previews and validation."""
        for attachment in self._attached():
            attachment.slot.train(mode)

    def detach(self) -> None:
        """Remove the adapter. A layer left without adapters is again the original module."""
        for attachment in self._attached():
            _remove(attachment)
        self._attachments = []

    def merge(self) -> None:
        """Write the adapter at its present strength into the base weights, rounded to their dtype, and remove it.

        Raises:
            InvalidAdapterState: an adapter attached earlier is on one of its layers; nothing was changed.
            AdapterNotWritable: a merged weight exceeds the range of its dtype; nothing was changed.
        """
        attachments = self._attached()
        self.train(False)  # or a dropout mask would be merged
        beyond = [
            attachment.target.name
            for attachment in attachments
            if not attachment.layer.merge(attachment.slot, only_check=True)
        ]
        if beyond:
            precision = str(attachments[0].layer.weight.dtype).removeprefix("torch.")
            raise AdapterNotWritable("the merged base", precision, too_large=beyond)
        for attachment in attachments:
            attachment.layer.merge(attachment.slot)
        self.detach()

    def _attached(self) -> list[Attachment]:
        if not self._attachments:
            raise InvalidAdapterState(
                "the adapter was removed already", "Attach a new one and load the values into it."
            )
        return self._attachments


StoredWeight = Callable[[str], Tensor]
"""The weight (out, in) of the layer of this name, as the file of the base stores it."""


def attach(
    roots: Sequence[nn.Module],
    spec: AdapterSpec,
    *,
    generator: torch.Generator | None = None,
    singular_vectors: Mapping[str, Mapping[str, Tensor]] | None = None,
    singular_vector_cache: SingularVectorCache | None = None,
    stored_weight: StoredWeight | None = None,
) -> Adapter:
    """Attach a new adapter to the Linear and Conv1d layers of some networks, and freeze everything else in them.

    At strength 1 and before any training the networks' outputs are unchanged, to rounding. The layers' weights keep
    their names. Cast the networks to the base precision and move them to their device first. On layers that have
    adapters already the new one acts on their result.

    Args:
        roots: the denoiser and the conditioner; layer names are relative to each.
        generator: draws the initial values of the free kinds; None: torch's global CPU generator.
        singular_vectors: singular vectors for the -xs kinds, used as they are; see `singular_vectors_from`.
        singular_vector_cache: stores computed singular vectors between runs.
        stored_weight: the weights that singular vectors are computed from: those of the file, before the cast. Whoever
            loads the adapter computes them from these, or from weights rounded less than a bf16 base is. None: the
            weights as the layers use them.

    Raises:
        FilterMatchesNothing: an include or exclude pattern matches no layer, or no layer is left.
        RankTooLarge: an -xs rank above the smallest dimension of the layers.
        LayerNotAdaptable: a targeted convolution has a kernel larger than 1.
        AdapterMismatch: `singular_vectors` does not cover the layers.
        ValueError: the spec contradicts itself.
    """
    kind = _checked_kind(spec, singular_vectors)
    found = _layers_of(roots)
    shapes = {name: _shape(target.layer) for name, target in found.items()}
    spec_rank_limit(spec, shapes)
    targets = [found[name] for name in selected(found, spec.include, spec.exclude)]
    layers = [_adapted_layer(target) for target in targets]
    needed = {} if singular_vectors is None else {target.name: shapes[target.name] for target in targets}
    known = singular_vectors_from(singular_vectors or {}, needed, spec.rank)
    slots = []
    for target, layer in zip(targets, layers, strict=True):
        weight_OI = layer.matrix()
        vectors = known.get(target.name)
        if kind.basis.singular and vectors is None:
            stored_OI = layer.matrix() if stored_weight is None else stored_weight(target.name)
            vectors = _singular_vectors(layer, stored_OI, spec.rank, singular_vector_cache)
        init = LayerInit(
            weight_OI=weight_OI,
            rank=spec.rank,
            dropout=spec.dropout,
            generator=generator,
            singular_vectors=vectors,
        )
        slots.append(Slot(kind, init, spec.scaling))
    # Nothing was changed so far, and nothing below can fail: no network is left with part of an adapter.
    _freeze(roots)
    attachments = [
        Attachment(target=target, layer=layer, slot=slot)
        for target, layer, slot in zip(targets, layers, slots, strict=True)
    ]
    for attachment in attachments:
        _install(attachment)
    return Adapter(spec, attachments)


def _checked_kind(spec: AdapterSpec, singular_vectors: object) -> Kind:
    kind = kind_named(spec.kind)
    if spec.rank < 1:
        raise ValueError(f"rank must be at least 1; got {spec.rank}")
    if kind.basis.singular and spec.dropout > 0:
        raise ValueError(f"adapter_dropout must be 0 for {spec.kind}: its directions are frozen; got {spec.dropout}")
    if singular_vectors is not None and not kind.basis.singular:
        raise ValueError(f"singular vectors were given for {spec.kind}, which uses none")
    return kind


def _layers_of(roots: Sequence[nn.Module]) -> dict[str, Target]:
    """Layers of all roots by name; names must be unique, since file keys do not name the root."""
    found: dict[str, Target] = {}
    for target in (target for root in roots for target in _layers(root)):
        if target.name in found:
            raise ValueError(f"two of the networks have a layer called {target.name}")
        found[target.name] = target
    return found


def _layers(root: nn.Module) -> Iterator[Target]:
    """Linear and Conv1d modules, and layers that have adapters already, in registration order."""
    for name, module in root.named_modules():
        if name and isinstance(module, (nn.Linear, nn.Conv1d, AdaptedLayer)):
            above, _, child = name.rpartition(".")
            yield Target(name=name, parent=root.get_submodule(above), child=child, layer=module)


def _adapted_layer(target: Target) -> AdaptedLayer:
    layer = target.layer
    return AdaptedQuantizedLayer(layer) if isinstance(layer, QuantizedLayer) else as_adapted_layer(target.name, layer)


def _singular_vectors(
    layer: AdaptedLayer, stored_OI: Tensor, rank: int, cache: SingularVectorCache | None
) -> SingularVectors:
    if isinstance(layer, AdaptedQuantizedLayer):
        return layer.vectors(rank)
    return leading_singular_vectors(stored_OI, rank, cache)


def _shape(layer: nn.Module) -> tuple[int, int]:
    shape = cast(Tensor, layer.weight).shape
    return shape[0], math.prod(shape[1:])


def _freeze(roots: Sequence[nn.Module]) -> None:
    """Turn gradients off for every parameter that is not an adapter's."""
    for root in roots:
        trained = {id(p) for module in root.modules() if isinstance(module, Slot) for p in module.parameters()}
        for parameter in root.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)


def _install(attachment: Attachment) -> None:
    attachment.layer.set_slots([*attachment.layer.attached_slots(), attachment.slot])
    setattr(attachment.target.parent, attachment.target.child, attachment.layer)


def _remove(attachment: Attachment) -> None:
    rest = [slot for slot in attachment.layer.attached_slots() if slot is not attachment.slot]
    attachment.layer.set_slots(rest)
    if not rest:
        setattr(attachment.target.parent, attachment.target.child, attachment.layer.base())
