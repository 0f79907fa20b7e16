"""Layers of one shape, stacked: their adapted weights computed at once, and handed out to those who use them.

L layers of one shape, O out features, I in features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor, nn

from stages.adapters.attach import Place
from stages.adapters.factored_weight import Factored
from stages.adapters.layer import Ready, Slot
from stages.adapters.ops.fused_linear import joined_products
from stages.adapters.ops.input_scale import in_scaled
from stages.adapters.stacked.unstack import Share, handed_out


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
    scaled_LNI = tokens_LNI if now.q_I is None else in_scaled(tokens_LNI, now.q_I)
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


class Part(IntEnum):
    """Of a step, by the layers that it goes through."""

    BEFORE = 0
    """All that no block holds."""
    AT_ONCE = 1
    """Those of all blocks that are used at once, before the blocks."""
    BLOCKS = 2


@dataclass(kw_only=True)
class Group:
    """Layers of one shape and of one part of the step.

    Layers of one role (the same but for numbers in their names) are neighbours.
    """

    places: Sequence[Place]
    weight_LOI: Tensor
    row_squares_LO: Tensor | None
    column_squares_LI: Tensor | None
    slot: Slot
    """All layers' slots as one, with stacked tensors."""
    shares: Sequence[Share]
    """Who uses the adapted weights: single layers, and layers of all blocks that are used at once."""
    part: Part = Part.BEFORE
    joined_LJI: Tensor | None = None
    """The weights with some rows behind each, which `compute` fills with the factor that tokens meet first."""
    bias_LJ: Tensor | None = None
    """Beside it, the biases and zeros; None where no layer has one."""
    at_once: dict[int, Ready] = field(default_factory=dict)
    """What shares of several layers use now, by their first layer."""

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
        (num_out, num_in), rank = self.weight_LOI.shape[1:], ready.right_RI.shape[1]
        # Through `data`: products that the backward needs again hold these weights, whose own rows are not written to.
        self.joined_LJI.data[:, num_out : num_out + rank, :num_in].copy_(ready.right_RI.detach())
        return ready._replace(joined_JI=self.joined_LJI, bias_J=self.bias_LJ)

    def hand_out(self, ready: Ready, *, at_once: bool) -> None:
        """Give every layer what it uses now.

        Args:
            at_once: whether shares of several layers are used as such, or layer by layer.
        """
        shares = self.shares if at_once else range(len(self.places))
        for share, given in zip(shares, handed_out(ready, shares), strict=True):
            first = self.places[share if isinstance(share, int) else share.start].layer
            given = given.without_bias() if first.bias is None else given
            if isinstance(share, int):
                first.ready = given
            else:
                self.at_once[share.start] = given

    def single_out(self) -> None:
        """Let layers that were to be used at once be used one by one after all."""
        for share in self.shares:
            if not isinstance(share, int) and share.start in self.at_once:
                layers = [place.layer for place in self.places[share]]
                for layer, given in zip(layers, handed_out(self.at_once[share.start], range(len(layers))), strict=True):
                    layer.ready = given

    def take_back(self) -> None:
        """What was handed out is out of date."""
        self.at_once.clear()
        for place in self.places:
            place.layer.ready = None

    def biases(self, part: slice) -> Tensor | None:
        """(L, O) of some of the layers; None without."""
        return stack([place.layer.bias for place in self.places[part]])

    def draw_masks(self, generator: torch.Generator) -> Tensor:
        """(L, 1, I) dropout masks of one step, float32, on the CPU."""
        layers, _, num_in = self.weight_LOI.shape
        kept = 1.0 - self.slot.basis.dropout
        return torch.bernoulli(torch.full((layers, 1, num_in), kept), generator=generator) / kept


def stack(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None
