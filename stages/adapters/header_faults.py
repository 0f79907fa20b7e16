"""Compares the tensors that an adapter file lists with those of the adapter that is asked for. Light: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from stages.adapters.adapter_header import BAKED_LEAVES, LEAVES, Shapes, leaf_of, leaves_of
from stages.adapters.kind import Kind
from stages.adapters.layer_filter import selected
from stages.adapters.target_layers import Layers
from stages.records import AdapterSpec

_OTHER_LAYOUTS = (
    (".lora_A.weight", "PEFT or diffusers"),
    (".lora_A.default.weight", "PEFT"),
    (".lora_down.weight", "kohya's scripts"),
    ("lora.down.weight", "an old diffusers"),
    (".hada_w1_a", "LyCORIS"),
    (".lokr_w1", "LyCORIS"),
)
"""Ends of names by which tensors of other tools' layouts are recognised."""


def other_layout(shapes: Shapes) -> str | None:
    """Whose layout the names of the tensors are, where it is another one that is known."""
    return next((tool for end, tool in _OTHER_LAYOUTS if any(key.endswith(end) for key in shapes)), None)


def tensor_faults(shapes: Shapes, kind: Kind, spec: AdapterSpec, layers: Layers) -> list[str]:
    """A line for each tensor that is missing, too many or of another shape, in the words of the stage that loads them.

    Args:
        layers: (out, in) of all layers that can carry an adapter, of which the spec selects some.
    """
    wanted = _expected({name: layers[name] for name in selected(layers, spec.include, spec.exclude)}, kind, spec.rank)
    found = {key: shape for key, shape in shapes.items() if leaf_of(key) not in BAKED_LEAVES}
    unknown = [f"unknown tensor: {key}" for key in found if leaf_of(key) not in LEAVES]
    extra = [f"extra: {key} {found[key]}" for key in found if key not in wanted and leaf_of(key) in LEAVES]
    missing = [f"missing: {key} {wanted[key]}" for key in wanted if key not in found]
    misshapen = [
        f"misshapen: {key} is {found[key]}, expected {wanted[key]}"
        for key in wanted.keys() & found.keys()
        if not _alike(found[key], wanted[key])
    ]
    return [*sorted(unknown), *sorted(misshapen), *sorted(extra), *sorted(missing)]


def _expected(layers: Layers, kind: Kind, rank: int) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of an adapter on these layers, by file key."""
    return {
        f"{layer}.parametrizations.weight.0.{leaf}": shape
        for layer, (num_out, num_in) in layers.items()
        for leaf, shape in _leaf_shapes(kind, rank, num_out, num_in).items()
    }


def _leaf_shapes(kind: Kind, rank: int, num_out: int, num_in: int) -> Mapping[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        **{"lora_A": (rank, num_in), "lora_B": (num_out, rank), "M_xs": (rank, rank)},
        **{"magnitude_r": (num_out,), "magnitude_c": (num_in,)},
        "magnitude": (num_out if kind.has_output_magnitude else num_in,),
    }
    return {leaf: shapes[leaf] for leaf in leaves_of(kind)}


def _alike(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether the shapes agree; magnitudes of old files have a second dimension of 1."""
    return found == wanted or (len(wanted) == 1 and len(found) == 2 and 1 in found and prod(found) == wanted[0])
