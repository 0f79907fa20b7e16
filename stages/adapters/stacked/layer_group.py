"""A group of layers of one shape, stacked: adapted weights are computed as a batch, then distributed to the layers.

Letters: L layers of one shape, O output features, I input features, R rank, M tokens, J rows of a joined weight [W; A].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor, nn

from stages.adapters.attach import Attachment
from stages.adapters.factored_weight import FactoredWeight
from stages.adapters.layer import AdaptedWeight, Slot
from stages.adapters.ops.fused_linear import joined_products
from stages.adapters.ops.input_scale import scaled_inputs
from stages.adapters.ops.output_scale import output_scaled
from stages.adapters.stacked.unstack import LayerSlice, unstacked


@dataclass(frozen=True, kw_only=True)
class StackedParameter:
    """A trained parameter that holds one tensor of each of several layers along its first dimension."""

    parameter: nn.Parameter
    keys: tuple[str, ...]
    """File keys, in the order of the layers."""
    unstacked: bool = False
    """The parameter is the tensor of its one key itself, without a dimension for layers."""


WeightFunction = Callable[[Slot, FactoredWeight], AdaptedWeight]


def adapted_weight(slot: Slot, base: FactoredWeight) -> AdaptedWeight:
    """The adapted weight of a (stacked) slot on this base weight, thin factors in the base's dtype."""
    return slot.adapted_weight(base, base.weight_OI.dtype)


def stacked_product(tokens_LMI: Tensor, weight_LOI: Tensor, weight: AdaptedWeight, bias_LO: Tensor | None) -> Tensor:
    """`AdaptedLayer.forward` for a stack of layers, (L, M, O); tokens may be the same for all layers, (1, M, I)."""
    tokens_LMI = tokens_LMI.expand(len(weight_LOI), -1, -1)
    scaled_LMI = tokens_LMI if weight.q_I is None else scaled_inputs(tokens_LMI, weight.q_I)
    if weight.joined_JI is not None:
        factors = (weight.left_OR, weight.right_RI, weight.p_O, weight.bias_J)
        return joined_products(scaled_LMI, weight.joined_JI, *factors)
    if bias_LO is None:
        out_LMO = torch.bmm(scaled_LMI, weight_LOI.mT)
    else:
        out_LMO = torch.baddbmm(bias_LO[:, None], scaled_LMI, weight_LOI.mT)
    if weight.left_OR is not None and weight.right_RI is not None:
        out_LMO = out_LMO + torch.bmm(torch.bmm(scaled_LMI, weight.right_RI.mT), weight.left_OR.mT)
    if weight.p_O is None:
        return out_LMO
    return output_scaled(out_LMO, weight.p_O[:, None], None if bias_LO is None else bias_LO[:, None])


class StepPhase(IntEnum):
    """When in a training step a layer is used, in the order of the forward pass."""

    BEFORE_BLOCKS = 0
    """Layers outside the transformer's blocks."""
    BATCHED_BLOCKS = 1
    """Layers inside the blocks that need no block's output: those of all blocks run as a batch, before the first."""
    IN_BLOCKS = 2
    """All other layers inside the blocks."""


@dataclass(kw_only=True)
class LayerGroup:
    """Layers of one shape that are used in the same phase of the step.

    Layers of one role (names equal but for numbers) are neighbours.
    """

    attachments: Sequence[Attachment]
    weight_LOI: Tensor
    row_squares_LO: Tensor | None
    column_squares_LI: Tensor | None
    slot: Slot
    """The slots of all layers as one, with stacked tensors."""
    slices: Sequence[LayerSlice]
    """How the adapted weights are used: by single layers, or by neighbours as a batch."""
    phase: StepPhase = StepPhase.BEFORE_BLOCKS
    joined_LJI: Tensor | None = None
    """The memory of the weights with spare rows behind each, which `compute` fills with the right factor A."""
    bias_LJ: Tensor | None = None
    """Biases followed by zeros, for use with `joined_LJI`; None where no layer has a bias."""
    batched: dict[int, AdaptedWeight] = field(default_factory=dict)
    """Adapted weights of the slices that are used as a batch, by the index of their first layer."""

    def compute(self, compute_weight: WeightFunction, *, joined: bool) -> AdaptedWeight:
        """The adapted weights for the present parameters, thin factors in the dtype of the weights.

        Args:
            joined: with [W; A] in `joined_JI`, where the group has memory for it.
        """
        first = self.attachments[0].slot
        self.slot.strength = first.strength
        self.slot.train(first.training)
        base = FactoredWeight(
            weight_OI=self.weight_LOI,
            row_squares_O=self.row_squares_LO,
            column_squares_I=self.column_squares_LI,
        )
        weight = compute_weight(self.slot, base)
        return self._joined(weight) if joined else weight

    def _joined(self, weight: AdaptedWeight) -> AdaptedWeight:
        """The weight with A copied behind W, if there is memory for it."""
        if self.joined_LJI is None or weight.right_RI is None:
            return weight
        (num_out, num_in), rank = self.weight_LOI.shape[1:], weight.right_RI.shape[1]
        # Through `data`: W is saved for the backward pass as a view of this memory, and its rows are not written to.
        self.joined_LJI.data[:, num_out : num_out + rank, :num_in].copy_(weight.right_RI.detach())
        return weight._replace(joined_JI=self.joined_LJI, bias_J=self.bias_LJ)

    def distribute(self, weight: AdaptedWeight, *, batched: bool) -> None:
        """Give every layer its adapted weight.

        Args:
            batched: whether slices of several layers are kept for use as a batch, or given out layer by layer.
        """
        slices = self.slices if batched else range(len(self.attachments))
        for one, share in zip(slices, unstacked(weight, slices), strict=True):
            first = self.attachments[one if isinstance(one, int) else one.start].layer
            share = share.without_bias() if first.bias is None else share
            if isinstance(one, int):
                first.precomputed = share
            else:
                self.batched[one.start] = share

    def unbatch(self) -> None:
        """Give the weights of batched slices to their layers, so that each can be run by itself."""
        for one in self.slices:
            if not isinstance(one, int) and one.start in self.batched:
                layers = [attachment.layer for attachment in self.attachments[one]]
                weights = unstacked(self.batched[one.start], range(len(layers)))
                for layer, weight in zip(layers, weights, strict=True):
                    layer.precomputed = weight

    def clear(self) -> None:
        """Take the adapted weights from the layers: they are out of date."""
        self.batched.clear()
        for attachment in self.attachments:
            attachment.layer.precomputed = None

    def biases(self, layers: slice) -> Tensor | None:
        """Biases of some of the layers, (L, O); None without."""
        return stacked_or_none([attachment.layer.bias for attachment in self.attachments[layers]])

    def draw_dropout_mask(self, generator: torch.Generator) -> Tensor:
        """Dropout mask of one step, (L, 1, I), float32, on the CPU."""
        layers, _, num_in = self.weight_LOI.shape
        kept = 1.0 - self.slot.basis.dropout
        return torch.bernoulli(torch.full((layers, 1, num_in), kept), generator=generator) / kept


def stacked_or_none(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """The tensors that are not None, stacked; None if there are none."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None
