"""A layer with adapters on it whose base weight is stored in 8 bits: dequantised for each use and freed after it.

Letters: O output features, I input features.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from stages.adapters.layer import AdaptedLayer, AdaptedWeight, Slot
from stages.adapters.singular_vectors import SingularVectors
from stages.errors import InvalidAdapterState


@runtime_checkable
class QuantizedLayer(Protocol):
    """A frozen Linear that stores its weight in another form than it computes with."""

    vectors: Any
    """Singular vectors of the weight before it was quantised, or None."""

    def dense(self) -> Tensor:
        """The weight (O, I) dequantised, a new tensor at every call."""

    def product(self, tokens: Tensor, dense_OI: Tensor | None = None) -> Tensor:
        """W x + bias; no dequantised weight is kept for the backward pass."""


class AdaptedQuantizedLayer(AdaptedLayer):
    """An `AdaptedLayer` on a quantised base.

    Magnitudes, norms and products are those of the dequantised weight, so step 0 is the stored base. Singular vectors
    are those of the weight before it was quantised: whoever loads the adapter file computes them from the published
    weights.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self._dense_OI: Tensor | None = None

    @property
    def stored(self) -> QuantizedLayer:
        """The layer that this one replaced."""
        (base,) = self._base
        return cast(QuantizedLayer, base)

    def forward(self, tokens: Tensor) -> Tensor:
        """The same as `AdaptedLayer.forward`, on a weight dequantised once for all its uses here."""
        self._dense_OI = self.stored.dense()
        try:
            return super().forward(tokens)
        finally:
            self._dense_OI = None

    def matrix(self) -> Tensor:
        """The dequantised weight (O, I)."""
        return self.stored.dense() if self._dense_OI is None else self._dense_OI

    def vectors(self, rank: int) -> SingularVectors:
        """The singular vectors kept when the weight was quantised. Raises: InvalidAdapterState when none were."""
        kept = self.stored.vectors
        if not isinstance(kept, SingularVectors) or kept.count < rank:
            raise InvalidAdapterState(
                f"the base was rounded to 8 bits before {rank} singular vectors of its weights were kept",
                "Keep them while quantising, or use the base unquantised.",
            )
        return kept

    def merge(self, slot: Slot, *, only_check: bool = False) -> bool:
        """Not possible: a merged weight would be rounded to 8 bits again. Raises: InvalidAdapterState."""
        raise InvalidAdapterState(
            "the base is stored in 8 bits", "Merge the adapter's file into the base as published."
        )

    def relocate_weight(self, memory_OI: Tensor) -> None:
        """Not possible: there is no dequantised weight in memory to stack. Raises: InvalidAdapterState."""
        raise InvalidAdapterState("the base is stored in 8 bits", "Use its layers without stacking them.")

    def _current_weight(self) -> AdaptedWeight:
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            return super()._current_weight()

    def _product(self, tokens: Tensor, matrix_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        if matrix_OI is self._dense_OI:
            return self.stored.product(tokens, matrix_OI)
        return super()._product(tokens, matrix_OI, bias_O)

    def _pack(self, tensor: Tensor) -> Tensor | _WeightView:
        """Replaces the dequantised weight, or a view of it, by how to recompute it."""
        dense = self._dense_OI
        if dense is None or tensor.untyped_storage().data_ptr() != dense.untyped_storage().data_ptr():
            return tensor
        return _WeightView(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _unpack(self, kept: Tensor | _WeightView) -> Tensor:
        return self.stored.dense().as_strided(*kept) if isinstance(kept, _WeightView) else kept


class _WeightView(NamedTuple):
    """Layout of a view of the dequantised weight."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt
