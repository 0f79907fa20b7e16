"""A layer with adapters on it whose base weight is stored small: it is widened for a use, and let go of after it.

O out features, I in features.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from stages.adapters.layer import AdaptedLayer, Ready, Slot
from stages.adapters.singular_vectors import Bases
from stages.errors import InvalidAdapterState


@runtime_checkable
class StoredSmall(Protocol):
    """A frozen Linear that keeps its weight in another form than it uses it in."""

    vectors: Any
    """Singular vectors of the weight as it was before it was rounded, or None."""

    def dense(self) -> Tensor:
        """The weight (out, in) as the layer uses it, made anew."""

    def product(self, tokens: Tensor, dense_OI: Tensor | None = None) -> Tensor:
        """With its bias; no wide copy of the weight is kept for the backward pass."""


class WidenedLayer(AdaptedLayer):
    """Lengths, norms and products are those of the weight as the layer uses it: step 0 is the stored base.

    Singular vectors are those of the weight before it was rounded: whoever loads the adapter's file takes them from the
    published weights.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self._whole_OI: Tensor | None = None

    @property
    def stored(self) -> StoredSmall:
        """The layer that stood here."""
        (base,) = self._base
        return cast(StoredSmall, base)

    def forward(self, tokens: Tensor) -> Tensor:
        """As the plain layer, on a weight widened once for all that is done with it here."""
        self._whole_OI = self.stored.dense()
        try:
            return super().forward(tokens)
        finally:
            self._whole_OI = None

    def matrix(self) -> Tensor:
        """The weight as (out, in), as the layer uses it."""
        return self.stored.dense() if self._whole_OI is None else self._whole_OI

    def vectors(self, rank: int) -> Bases:
        """Those kept from before the weight was rounded. Raises: InvalidAdapterState, when none were."""
        kept = self.stored.vectors
        if not isinstance(kept, Bases) or kept.count < rank:
            raise InvalidAdapterState(
                f"the base was rounded to 8 bits before {rank} singular vectors of its weights were kept",
                "Keep them while quantising, or quantise nothing.",
            )
        return kept

    def merge(self, slot: Slot, *, only_check: bool = False) -> bool:
        """Raises: InvalidAdapterState. A merged weight would be rounded to 8 bits again."""
        raise InvalidAdapterState(
            "the base is stored in 8 bits", "Merge the adapter's file into the base as published."
        )

    def move_weight(self, place_OI: Tensor) -> None:
        """Raises InvalidAdapterState: weights of many layers cannot be stacked in memory that none of them has."""
        raise InvalidAdapterState("the base is stored in 8 bits", "Take such layers one by one.")

    def _now(self) -> Ready:
        with torch.autograd.graph.saved_tensors_hooks(self._put_away, self._brought_back):
            return super()._now()

    def _product(self, tokens: Tensor, matrix_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        if matrix_OI is self._whole_OI:
            return self.stored.product(tokens, matrix_OI)
        return super()._product(tokens, matrix_OI, bias_O)

    def _put_away(self, tensor: Tensor) -> Tensor | _View:
        """In place of the wide weight, or a view of it, how to get it back."""
        whole = self._whole_OI
        if whole is None or tensor.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            return tensor
        return _View(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _brought_back(self, kept: Tensor | _View) -> Tensor:
        return self.stored.dense().as_strided(*kept) if isinstance(kept, _View) else kept


class _View(NamedTuple):
    """Of the wide weight."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt
