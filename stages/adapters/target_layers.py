"""Shapes of the layers that can carry an adapter, and the rank limit they set. Light: a plan needs no torch.

A layer's shape is (out, in); a Conv1d weight (out, channels, kernel) counts as (out, channels * kernel).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from stages.adapters.kind import kind_named
from stages.adapters.layer_filter import selected
from stages.errors import RankTooLarge
from stages.records import AdapterSpec

Layers = Mapping[str, tuple[int, int]]
"""(out, in) of layers by name."""
_ROOTS = ("model.", "conditioner.")
"""Prefixes of the denoiser and the conditioner in a whole checkpoint."""


def layer_shapes(tensor_shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
    """(out, in) of the layers that can carry an adapter, by name, from the tensor shapes in a checkpoint's header.

    Every matrix called `weight` under the denoiser and the conditioner is one: norms are called `gamma`, and tokens and
    embeddings have names of their own. Names are relative to their root, `model.project_in`, `conditioners.sec...`.
    """
    return {
        key.removesuffix(".weight").removeprefix(root): (shape[0], prod(shape[1:]))
        for root in _ROOTS
        for key, shape in tensor_shapes.items()
        if key.startswith(root) and key.endswith(".weight") and len(shape) >= 2
    }


def rank_limit(shapes: Mapping[str, tuple[int, int]]) -> tuple[int, str]:
    """The smallest dimension of any of these layers, and the name of the first layer that has it."""
    layer = min(shapes, key=lambda name: min(shapes[name]))
    return min(shapes[layer]), layer


def spec_rank_limit(spec: AdapterSpec, shapes: Mapping[str, tuple[int, int]]) -> int | None:
    """The largest rank this kind can have on the layers that include and exclude select; None: no limit.

    Raises:
        FilterMatchesNothing: a pattern of the spec matches none of these layers.
        RankTooLarge: the rank of the spec is above the limit.
    """
    names = selected(shapes, spec.include, spec.exclude)
    if not kind_named(spec.kind).basis.singular:
        return None
    limit, layer = rank_limit({name: shapes[name] for name in names})
    if spec.rank > limit:
        raise RankTooLarge(spec.rank, limit, layer)
    return limit
