"""A layer with adapters on it: stands where a Linear or Conv1d stood, under the same weight and bias names.

`factored` computes the adapted weight, which depends on parameters only; `forward` applies it to what flows through,
or applies what was computed for all layers at once (`_together`).
Letters: O out features, I in features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.adapters.basis import Start
from stages.adapters.factored_weight import Factored, Term, squares
from stages.adapters.kind import Kind
from stages.adapters.ops.fused_linear import joined_product
from stages.adapters.ops.onednn_linear import adapted_linear, frozen_linear, is_faster
from stages.errors import InvalidAdapterState, LayerNotAdaptable


class Ready(NamedTuple):
    """An adapted weight as tokens meet it: diag(p) (W + L R) diag(q), thin factors in the dtype of the products.

    Any of them may be None: no scale, no move. For many layers at once each has a leading dimension.
    """

    p_O: Tensor | None
    q_I: Tensor | None
    left_OR: Tensor | None
    right_RI: Tensor | None
    outside: bool = False
    """L and R have their scales in them: diag(p) W diag(q) + L R, as several adapters on a layer leave it."""
    joined_JI: Tensor | None = None
    """W with the values of R in the rows behind it, where products are to be joined (`_joined`)."""
    bias_J: Tensor | None = None
    """Beside it: the layer's bias, and zeros."""

    def is_one_move(self) -> bool:
        """Whether it is diag(p) (W + L R): nothing is done to what comes in."""
        return self.q_I is None and not self.outside

    def without_bias(self) -> Ready:
        """Of layers that have none, among others that do."""
        return self._replace(bias_J=None)


def ready(whole: Factored, dtype: torch.dtype) -> Ready:
    """Scales stay in float32; the thin factors are rounded once."""
    if not whole.terms:
        return Ready(whole.p_O, whole.q_I, None, None)
    left_OR, right_RI = whole.low_rank()
    return Ready(whole.p_O, whole.q_I, left_OR.to(dtype), right_RI.to(dtype), outside=True)


def narrowed(factor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A thin factor as it is and in the dtype of the products."""
    if dtype == factor.dtype or not factor.requires_grad:
        return factor, factor.to(dtype)
    both: tuple[Tensor, Tensor] = _Narrowed.apply(factor, dtype)
    return both


class _Narrowed(torch.autograd.Function):
    """Its two gradients are added as they come: widened first, they are one kernel more."""

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
    """One adapter's part on one layer."""

    def __init__(self, kind: Kind, start: Start, scaling: float) -> None:
        super().__init__()
        self.scaling, self.rank = scaling, start.rank
        self.strength = 1.0
        magnitude = kind.magnitude.load()
        self.uses_squares: bool = magnitude.uses_squares
        self.basis = kind.basis.load()(
            start, uses_weight_right=magnitude.uses_weight_right, uses_left_weight=magnitude.uses_left_weight
        )
        self.magnitude = magnitude(start)

    def forward(self, before: Factored) -> Factored:
        """The weight after this adapter. Strength exactly 0 leaves it alone; any other keeps the lengths in full."""
        return before if self.strength == 0 else self._lengthened(before.moved(self._term()))

    def alone(self, base: Factored, dtype: torch.dtype) -> Ready:
        """The weight after this adapter where it is the only one: its move inside its scales, which costs least."""
        if self.strength == 0:
            return Ready(None, None, None, None)
        term = self._term()
        if term.left_OR.is_cuda:
            (wide_OR, left_OR), (wide_RI, right_RI) = narrowed(term.left_OR, dtype), narrowed(term.right_RI, dtype)
            whole = self._lengthened(base.moved(replace(term, left_OR=wide_OR, right_RI=wide_RI)))
            return Ready(whole.p_O, whole.q_I, left_OR, right_RI)
        # Gradients are added up from the last use to the first: another order could give other bits.
        whole = self._lengthened(base.moved(term))
        return Ready(whole.p_O, whole.q_I, term.left_OR.to(dtype), term.right_RI.to(dtype))

    def _term(self) -> Term:
        return cast(Term, self.basis.term(self.scaling * self.strength))

    def _lengthened(self, moved: Factored) -> Factored:
        return cast(Factored, self.magnitude(moved))

    def leaves(self) -> dict[str, nn.Parameter]:
        """Trained tensors by their names in the file format."""
        return dict(self.basis.named_parameters()) | dict(self.magnitude.named_parameters())


class AdaptedLayer(nn.Module):
    """A Linear's own parameters, frozen, under a stack of slots. Tokens are (..., features)."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    row_squares_O: Tensor | None
    column_squares_I: Tensor | None

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self._base = (base,)  # in a tuple, lest torch list its parameters a second time
        self.register_parameter("weight", cast(nn.Parameter, base.weight))
        self.register_parameter("bias", cast("nn.Parameter | None", base.bias))
        self.register_buffer("row_squares_O", None, persistent=False)
        self.register_buffer("column_squares_I", None, persistent=False)
        self.slots = nn.ModuleList()
        self.ready: Ready | None = None
        """The adapted weight of this step, where it was computed together with that of other layers."""

    def forward(self, tokens: Tensor) -> Tensor:
        """W' x + bias: products in the dtype of the tokens (or autocast's), scales in float32."""
        now = self._now() if self.ready is None else self.ready
        scaled = self._scaled(tokens, now.q_I)
        if now.joined_JI is not None:
            return self._joined(scaled, now)
        multiply = self._product
        # Only in steps, whose weights were computed for all layers: what the plain way gives stays what it was.
        if self.ready is not None and self._is_faster_on_cpu(scaled):
            if now.p_O is not None and now.is_one_move() and now.left_OR is not None and now.right_RI is not None:
                return adapted_linear(tokens, self.matrix(), self.bias, now.left_OR, now.right_RI, now.p_O)
            multiply = frozen_linear
        # With its bias, as the base layer does it: where nothing is moved yet, the base's very bits come out.
        out = multiply(scaled, self.matrix(), self.bias)
        if now.outside:
            return self._lengthened(out, now.p_O) + self._moved(tokens, now)
        return self._lengthened(out if now.left_OR is None else out + self._moved(scaled, now), now.p_O)

    def gated_silu(self, tokens: Tensor) -> Tensor:
        """a silu(g) of what `forward` gives, [a, g]; in one operation where products are joined."""
        if self.ready is not None and self.ready.joined_JI is not None:
            return self._joined(self._scaled(tokens, self.ready.q_I), self.ready, gated=True)
        value, gate = self(tokens).chunk(2, dim=-1)
        return value * F.silu(gate)

    def _joined(self, scaled: Tensor, now: Ready, *, gated: bool = False) -> Tensor:
        assert now.joined_JI is not None and now.left_OR is not None and now.right_RI is not None, "all or none"
        factors = (now.joined_JI, now.left_OR, now.right_RI, now.p_O, now.bias_J)
        return self._features_last(joined_product(self._features_last(scaled), *factors, gated=gated))

    def _lengthened(self, out: Tensor, p_O: Tensor | None) -> Tensor:
        """Each output feature in its new length, p (W x) + b, from W x + b: rounded once."""
        if p_O is None or self.bias is None:
            return self._scaled(out, p_O)
        length, bias = self._along_features(p_O), self._along_features(self.bias)
        return (out * length + bias * (1 - length)).to(out.dtype)

    def _now(self) -> Ready:
        stack = self.stack()
        if len(stack) != 1:
            return ready(self.factored(), self._product_dtype())
        with torch.autocast(self.weight.device.type, enabled=False):
            one = stack[0].alone(self._unadapted(), self.weight.dtype)
        left_OR, right_RI = (None if factor is None else factor.to(self._product_dtype()) for factor in one[2:4])
        return Ready(one.p_O, one.q_I, left_OR, right_RI)

    def _moved(self, tokens: Tensor, now: Ready) -> Tensor:
        assert now.left_OR is not None and now.right_RI is not None, "both or neither"
        return self._product(self._product(tokens, now.right_RI), now.left_OR)

    def _product_dtype(self) -> torch.dtype:
        device = self.weight.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype

    def factored(self) -> Factored:
        """The adapted weight, with its norms taken in float32 whatever autocast says."""
        with torch.autocast(self.weight.device.type, enabled=False):
            whole = self._unadapted()
            for slot in self.slots:
                whole = slot(whole)
            return whole

    def merge(self, slot: Slot, *, only_check: bool = False) -> bool:
        """Write the lowest slot into the base weight, rounded to its dtype, and take it off; False if not finite.

        Raises:
            InvalidAdapterState: another slot lies below: what it does could not be kept.
        """
        stack = self.stack()
        if stack[0] is not slot:
            raise InvalidAdapterState(
                "another adapter was attached before this one", "Merge or detach the earlier one first."
            )
        with torch.no_grad():
            merged_OI = slot(self._unadapted()).dense().to(self.weight.dtype)
            finite = bool(merged_OI.isfinite().all())
            if finite and not only_check:
                self.weight.copy_(merged_OI.view_as(self.weight))
                self.set_slots(stack[1:])
        return finite

    def move_weight(self, place_OI: Tensor) -> None:
        """Let the weight lie in another piece of memory, maybe with gaps between rows, which takes over its values."""
        place_OI.copy_(self.matrix())
        self.weight.data = place_OI.view(self.weight.shape)

    def stack(self) -> list[Slot]:
        """The slots, the one that acts on the base weight first."""
        return cast(list[Slot], list(self.slots))

    def set_slots(self, slots: list[Slot]) -> None:
        """Replace the stack; what it remembers about the weight is computed again, for a merge may have changed it."""
        self.slots = nn.ModuleList(slots)
        for basis in (slot.basis for slot in slots if slot.basis.knows_weight):
            basis.keep_products(self.matrix())
        needed = any(slot.uses_squares for slot in slots)
        self.row_squares_O, self.column_squares_I = squares(self.matrix()) if needed else (None, None)

    def base(self) -> nn.Module:
        """The layer that stood here, with the parameters it has now."""
        (base,) = self._base
        base.register_parameter("weight", self.weight)
        base.register_parameter("bias", self.bias)
        return base

    def _unadapted(self) -> Factored:
        return Factored(
            weight_OI=self.matrix(), row_squares_O=self.row_squares_O, column_squares_I=self.column_squares_I
        )

    def matrix(self) -> Tensor:
        """The weight as (out, in), detached."""
        return matrix_of(self.weight)

    def _scaled(self, value: Tensor, scale: Tensor | None) -> Tensor:
        """Each feature times its scale, rounded once."""
        return value if scale is None else (value * self._along_features(scale)).to(value.dtype)

    def _product(self, tokens: Tensor, matrix_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return F.linear(tokens, matrix_OI, bias_O)

    def _is_faster_on_cpu(self, tokens: Tensor) -> bool:
        """Whether `_on_cpu` does the layer's products."""
        return is_faster(tokens, self.matrix(), self.bias)

    def _along_features(self, vector: Tensor) -> Tensor:
        """Shaped to be multiplied with tokens, feature by feature."""
        return vector

    def _features_last(self, tokens: Tensor) -> Tensor:
        """From how the layer's tokens lie to (..., features), and back."""
        return tokens

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedLayer:
        probe = torch.zeros(1, dtype=torch.float32)
        if fn(probe).dtype != probe.dtype:
            raise InvalidAdapterState(
                "a network with adapters was cast to another dtype, which would round them and stale their norms",
                "Cast the base before attaching.",
            )
        return cast(AdaptedLayer, super()._apply(fn, recurse))


class AdaptedConv1d(AdaptedLayer):
    """The same for a convolution of kernel 1. Tokens are (batch, features, frames)."""

    def _product(self, tokens: Tensor, matrix_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return F.conv1d(tokens, matrix_OI[:, :, None], bias_O)

    def _is_faster_on_cpu(self, tokens: Tensor) -> bool:
        return False  # its tokens lie the other way round

    def _along_features(self, vector: Tensor) -> Tensor:
        return vector[:, None]

    def _features_last(self, tokens: Tensor) -> Tensor:
        return tokens.mT


def matrix_of(weight: Tensor) -> Tensor:
    """A layer's weight as (out, in): a convolution's (out, channels, kernel) is (out, channels * kernel)."""
    return weight.detach().flatten(1)


def adapted(name: str, base: nn.Module) -> AdaptedLayer:
    """The layer itself if it carries adapters already, else one that can stand in its place.

    Raises:
        LayerNotAdaptable: a convolution that is more than a product per frame.
    """
    if isinstance(base, AdaptedLayer):
        return base
    if isinstance(base, nn.Linear):
        return AdaptedLayer(base)
    assert isinstance(base, nn.Conv1d), "only Linear and Conv1d are targeted"
    plain = {"kernel": base.kernel_size == (1,), "stride": base.stride == (1,), "groups": base.groups == 1}
    odd = [what for what, holds in {**plain, "padding": base.padding in ((0,), "valid", "same")}.items() if not holds]
    if odd:
        raise LayerNotAdaptable(name, f"it is a Conv1d, and its {' and '.join(odd)} make it no plain product per frame")
    return AdaptedConv1d(base)
