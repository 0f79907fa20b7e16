"""A Linear or Conv1d with adapters on it; it replaces the layer under the same weight and bias names.

`factored` computes the adapted weight, which depends on parameters only; `forward` applies it to the tokens, or applies
the weight that was computed for all layers at once (`stacked_adapter`).
Letters: O output features, I input features, R rank, J rows of a joined weight [W; A] (`fused_linear`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.adapters.basis import LayerInit
from stages.adapters.factored_weight import FactoredWeight, LowRankTerm, squares
from stages.adapters.kind import Kind
from stages.adapters.ops.fused_linear import joined_product
from stages.adapters.ops.onednn_linear import adapted_linear, frozen_linear, is_faster
from stages.adapters.ops.output_scale import output_scaled
from stages.errors import InvalidAdapterState, LayerNotAdaptable


class AdaptedWeight(NamedTuple):
    """An adapted weight ready for use in a product: diag(p) (W + L R) diag(q), thin factors in the product dtype.

    None stands for no scale, or no update. For a stack of layers each tensor has a leading dimension.
    """

    p_O: Tensor | None
    q_I: Tensor | None
    left_OR: Tensor | None
    right_RI: Tensor | None
    scales_folded: bool = False
    """L and R include the scales: diag(p) W diag(q) + L R, the form of several adapters on one layer."""
    joined_JI: Tensor | None = None
    """W followed by rows with the values of R, where both are used in one product (`fused_linear`)."""
    bias_J: Tensor | None = None
    """The layer's bias followed by zeros, for use with `joined_JI`."""

    def scales_output_only(self) -> bool:
        """Whether it is diag(p) (W + L R): the layer's input is not scaled."""
        return self.q_I is None and not self.scales_folded

    def without_bias(self) -> AdaptedWeight:
        """The same without a bias: for a layer that has none, in a stack where others have one."""
        return self._replace(bias_J=None)


def with_scales_folded(whole: FactoredWeight, dtype: torch.dtype) -> AdaptedWeight:
    """The weight with all terms concatenated: scales stay in float32, the thin factors are rounded once to `dtype`."""
    if not whole.terms:
        return AdaptedWeight(whole.p_O, whole.q_I, None, None)
    left_OR, right_RI = whole.low_rank()
    return AdaptedWeight(whole.p_O, whole.q_I, left_OR.to(dtype), right_RI.to(dtype), scales_folded=True)


def narrowed(factor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A thin factor as it is and rounded to the product dtype; its gradient is the sum of both."""
    if dtype == factor.dtype or not factor.requires_grad:
        return factor, factor.to(dtype)
    both: tuple[Tensor, Tensor] = _Narrowed.apply(factor, dtype)
    return both


class _Narrowed(torch.autograd.Function):
    """Adds the two gradients in one mixed-dtype kernel; autograd would widen the narrow one in a kernel of its own."""

    @staticmethod
    def forward(ctx: Any, factor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return factor.view_as(factor), factor.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        wide, narrow = grads
        if wide is None or narrow is None:
            return (wide if narrow is None else narrow.float()), None
        return wide + narrow, None


class Slot(nn.Module):
    """One adapter's parameters on one layer: a basis and a magnitude."""

    def __init__(self, kind: Kind, init: LayerInit, scaling: float) -> None:
        super().__init__()
        self.kind, self.scaling, self.rank = kind, scaling, init.rank
        self.strength = 1.0
        magnitude = kind.magnitude.load()
        self.needs_squares: bool = magnitude.needs_squares
        self.basis = kind.basis.load()(
            init, needs_weight_right=magnitude.needs_weight_right, needs_left_weight=magnitude.needs_left_weight
        )
        self.magnitude = magnitude(init)

    def forward(self, before: FactoredWeight) -> FactoredWeight:
        """The weight after this adapter. Strength 0 changes nothing; at any other the magnitudes count in full."""
        return before if self.strength == 0 else self._with_magnitude(before.plus(self._term()))

    def adapted_weight(self, base: FactoredWeight, dtype: torch.dtype) -> AdaptedWeight:
        """The weight after this adapter, the layer's only one, as diag(p) (W + L R) diag(q): the cheapest form."""
        if self.strength == 0:
            return AdaptedWeight(None, None, None, None)
        term = self._term()
        if term.left_OR.is_cuda:
            (wide_OR, left_OR), (wide_RI, right_RI) = narrowed(term.left_OR, dtype), narrowed(term.right_RI, dtype)
            whole = self._with_magnitude(base.plus(replace(term, left_OR=wide_OR, right_RI=wide_RI)))
            return AdaptedWeight(whole.p_O, whole.q_I, left_OR, right_RI)
        # Autograd sums gradients from the last use to the first: another order of these lines could change bits.
        whole = self._with_magnitude(base.plus(term))
        return AdaptedWeight(whole.p_O, whole.q_I, term.left_OR.to(dtype), term.right_RI.to(dtype))

    def _term(self) -> LowRankTerm:
        return cast(LowRankTerm, self.basis.term(self.scaling * self.strength))

    def _with_magnitude(self, updated: FactoredWeight) -> FactoredWeight:
        return cast(FactoredWeight, self.magnitude(updated))

    def leaves(self) -> dict[str, nn.Parameter]:
        """Trained tensors by their leaf names in the file format, such as `lora_A`."""
        return dict(self.basis.named_parameters()) | dict(self.magnitude.named_parameters())


class AdaptedLayer(nn.Module):
    """A Linear's own frozen parameters, and the slots of the adapters on it. Tokens are (..., features)."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    row_squares_O: Tensor | None
    column_squares_I: Tensor | None

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self._base = (base,)  # in a tuple, or torch would register its parameters a second time
        self.register_parameter("weight", cast(nn.Parameter, base.weight))
        self.register_parameter("bias", cast("nn.Parameter | None", base.bias))
        self.register_buffer("row_squares_O", None, persistent=False)
        self.register_buffer("column_squares_I", None, persistent=False)
        self.slots = nn.ModuleList()
        self.precomputed: AdaptedWeight | None = None
        """The adapted weight of this step, where it was computed for a stack of layers (`StackedAdapter`)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """W' x + bias: products in the dtype of the tokens (or autocast's), scales in float32."""
        current = self._current_weight() if self.precomputed is None else self.precomputed
        scaled = self._scaled(tokens, current.q_I)
        if current.joined_JI is not None:
            return self._joined(scaled, current)
        multiply = self._product
        # Only in training steps, whose weights are precomputed: elsewhere the product stays torch's own.
        if self.precomputed is not None and self._onednn_is_faster(scaled):
            p_O, left_OR, right_RI = current.p_O, current.left_OR, current.right_RI
            if current.scales_output_only() and p_O is not None and left_OR is not None and right_RI is not None:
                return adapted_linear(tokens, self.matrix(), self.bias, left_OR, right_RI, p_O)
            multiply = frozen_linear
        # With its bias, as the base layer computes it: a fresh adapter gives the base's output to the bit.
        out = multiply(scaled, self.matrix(), self.bias)
        if current.scales_folded:
            return self._output_scaled(out, current.p_O) + self._low_rank_product(tokens, current)
        return self._output_scaled(
            out if current.left_OR is None else out + self._low_rank_product(scaled, current), current.p_O
        )

    def gated_silu(self, tokens: Tensor) -> Tensor:
        """a silu(g), where `forward` gives [a, g]: one fused operation where a joined weight is precomputed."""
        if self.precomputed is not None and self.precomputed.joined_JI is not None:
            return self._joined(self._scaled(tokens, self.precomputed.q_I), self.precomputed, gated=True)
        value, gate = self(tokens).chunk(2, dim=-1)
        return value * F.silu(gate)

    def _joined(self, scaled: Tensor, current: AdaptedWeight, *, gated: bool = False) -> Tensor:
        assert current.joined_JI is not None and current.left_OR is not None and current.right_RI is not None, (
            "all or none"
        )
        factors = (current.joined_JI, current.left_OR, current.right_RI, current.p_O, current.bias_J)
        return self._features_last(joined_product(self._features_last(scaled), *factors, gated=gated))

    def _output_scaled(self, out: Tensor, p_O: Tensor | None) -> Tensor:
        """p (W x) + b, computed from W x + b and rounded once."""
        if p_O is None or self.bias is None:
            return self._scaled(out, p_O)
        return output_scaled(out, self._along_features(p_O), self._along_features(self.bias))

    def _current_weight(self) -> AdaptedWeight:
        slots = self.attached_slots()
        if len(slots) != 1:
            return with_scales_folded(self.factored(), self._product_dtype())
        with torch.autocast(self.weight.device.type, enabled=False):
            one = slots[0].adapted_weight(self._base_weight(), self.weight.dtype)
        left_OR, right_RI = (None if factor is None else factor.to(self._product_dtype()) for factor in one[2:4])
        return AdaptedWeight(one.p_O, one.q_I, left_OR, right_RI)

    def _low_rank_product(self, tokens: Tensor, current: AdaptedWeight) -> Tensor:
        assert current.left_OR is not None and current.right_RI is not None, "both or neither"
        return self._product(self._product(tokens, current.right_RI), current.left_OR)

    def _product_dtype(self) -> torch.dtype:
        device = self.weight.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype

    def factored(self) -> FactoredWeight:
        """The adapted weight; norms are taken in float32 even under autocast."""
        with torch.autocast(self.weight.device.type, enabled=False):
            whole = self._base_weight()
            for slot in self.slots:
                whole = slot(whole)
            return whole

    def merge(self, slot: Slot, *, only_check: bool = False) -> bool:
        """Write the first slot into the base weight, rounded to its dtype, and remove it; False if not finite.

        Args:
            only_check: change nothing, only compute whether the merged weight is finite.

        Raises:
            InvalidAdapterState: another slot comes before this one: its effect could not be kept.
        """
        slots = self.attached_slots()
        if slots[0] is not slot:
            raise InvalidAdapterState(
                "another adapter was attached before this one", "Merge or detach the earlier one first."
            )
        with torch.no_grad():
            merged_OI = slot(self._base_weight()).dense().to(self.weight.dtype)
            finite = bool(merged_OI.isfinite().all())
            if finite and not only_check:
                self.weight.copy_(merged_OI.view_as(self.weight))
                self.set_slots(slots[1:])
        return finite

    def relocate_weight(self, memory_OI: Tensor) -> None:
        """Copy the weight into other memory, whose rows may have gaps between them, and use it from there."""
        memory_OI.copy_(self.matrix())
        self.weight.data = memory_OI.view(self.weight.shape)

    def attached_slots(self) -> list[Slot]:
        """The slots in the order they were attached; the first acts on the base weight."""
        return cast(list[Slot], list(self.slots))

    def set_slots(self, slots: list[Slot]) -> None:
        """Replace the slots, and recompute what they cache about the weight: a merge may have changed it."""
        self.slots = nn.ModuleList(slots)
        for basis in (slot.basis for slot in slots if slot.basis.depends_on_weight):
            basis.cache_products(self.matrix())
        needed = any(slot.needs_squares for slot in slots)
        self.row_squares_O, self.column_squares_I = squares(self.matrix()) if needed else (None, None)

    def base(self) -> nn.Module:
        """The layer this one replaced, with the present weight and bias."""
        (base,) = self._base
        base.register_parameter("weight", self.weight)
        base.register_parameter("bias", self.bias)
        return base

    def _base_weight(self) -> FactoredWeight:
        return FactoredWeight(
            weight_OI=self.matrix(), row_squares_O=self.row_squares_O, column_squares_I=self.column_squares_I
        )

    def matrix(self) -> Tensor:
        """The weight as (out, in), detached."""
        return matrix_of(self.weight)

    def _scaled(self, value: Tensor, scale: Tensor | None) -> Tensor:
        """Each feature times its scale, rounded once; None stands for no scale."""
        return value if scale is None else (value * self._along_features(scale)).to(value.dtype)

    def _product(self, tokens: Tensor, matrix_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return F.linear(tokens, matrix_OI, bias_O)

    def _onednn_is_faster(self, tokens: Tensor) -> bool:
        """Whether the layer's products are done by `onednn_linear`."""
        return is_faster(tokens, self.matrix(), self.bias)

    def _along_features(self, vector: Tensor) -> Tensor:
        """The vector shaped to broadcast over tokens."""
        return vector

    def _features_last(self, tokens: Tensor) -> Tensor:
        """The tokens as (..., features), or such tokens in the layer's own layout: its own inverse."""
        return tokens

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedLayer:
        probe = torch.zeros(1, dtype=torch.float32)
        if fn(probe).dtype != probe.dtype:
            raise InvalidAdapterState(
                "a network with adapters was cast to another dtype, which would round them and make their norms stale",
                "Cast the base before attaching.",
            )
        return cast(AdaptedLayer, super()._apply(fn, recurse))


class AdaptedConv1d(AdaptedLayer):
    """A Conv1d of kernel 1 with adapters on it. Tokens are (batch, features, frames)."""

    def _product(self, tokens: Tensor, matrix_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return F.conv1d(tokens, matrix_OI[:, :, None], bias_O)

    def _onednn_is_faster(self, tokens: Tensor) -> bool:
        return False  # features are not its last dimension

    def _along_features(self, vector: Tensor) -> Tensor:
        return vector[:, None]

    def _features_last(self, tokens: Tensor) -> Tensor:
        return tokens.mT


def matrix_of(weight: Tensor) -> Tensor:
    """A layer's weight as (out, in), detached; a convolution's (out, channels, kernel) is (out, channels * kernel)."""
    return weight.detach().flatten(1)


def as_adapted_layer(name: str, base: nn.Module) -> AdaptedLayer:
    """The layer itself if it has adapters already, else an `AdaptedLayer` to replace it.

    Raises:
        LayerNotAdaptable: a convolution that is not one matrix product per frame.
    """
    if isinstance(base, AdaptedLayer):
        return base
    if isinstance(base, nn.Linear):
        return AdaptedLayer(base)
    assert isinstance(base, nn.Conv1d), "only Linear and Conv1d are targeted"
    plain = {"kernel": base.kernel_size == (1,), "stride": base.stride == (1,), "groups": base.groups == 1}
    odd = [what for what, holds in {**plain, "padding": base.padding in ((0,), "valid", "same")}.items() if not holds]
    if odd:
        raise LayerNotAdaptable(name, f"it is a Conv1d whose {' and '.join(odd)} rule out one product per frame")
    return AdaptedConv1d(base)
