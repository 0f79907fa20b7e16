"""What operations cost: memory held, bytes moved, multiplications. Counted as they run, on any device or on none.

B batch, H heads, N queries, S keys, D features of a head.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from stages.models.nets.attention.interface import AttentionFunction

FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 5
"""Products of N x S x D that fused attention makes for every head: it computes the scores again in the backward."""

_ARITHMETIC = frozenset(
    {"add", "sub", "rsub", "mul", "div", "neg", "pow", "rsqrt", "sqrt", "silu", "silu_backward", "sigmoid"}
    | {"sigmoid_backward"}
)


class Ledger(TorchDispatchMode):
    """Within, every operation is written down; on the meta device it costs neither memory nor arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        """Of what was made within."""
        self.operations = self.moved_bytes = 0
        """Of operations that are no views: how many, and what they read and write."""
        self.product_flops = self.attention_flops = 0
        """Multiplications and additions."""
        self._known: dict[int, int] = {}

    def know(self, tensors: Iterable[Tensor]) -> None:
        """Leave these out of the memory counted."""
        for tensor in tensors:
            self._known.setdefault(tensor.untyped_storage()._cdata, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = _elementwise(func, args)
        out = func(*args, **kwargs) if out is None else out
        made = _tensors(out)
        for tensor in made:
            self._see(tensor)
        if not func.is_view:
            self.operations += 1
            self.moved_bytes += sum(tensor.nbytes for tensor in (*made, *_tensors((args, kwargs))))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.product_flops += count(*args, **kwargs, out_val=out)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.live_bytes += self._known[key]
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live_bytes -= self._known.pop(key)


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _elementwise(func: Any, args: Sequence[Any]) -> Tensor | None:
    """The result of an elementwise operation on the meta device; None for any other.

    Torch finds shape and dtype in a tenth of a millisecond each, which is most of what a rehearsal would take.
    """
    tensors = [value for value in args if isinstance(value, Tensor)]
    if not (_keeps_shape(func) and tensors and all(one.is_meta and one.is_contiguous() for one in tensors)):
        return None
    shapes = {one.shape for one in tensors}
    shape = shapes.pop() if len(shapes) == 1 else torch.broadcast_shapes(*(one.shape for one in tensors))
    return torch.empty(shape, dtype=_common_dtype(tensors, args), device="meta")


def _common_dtype(tensors: Sequence[Tensor], args: Sequence[Any]) -> torch.dtype:
    """Numbers, and tensors without dimensions beside others, make floats of integers but widen no float."""
    wide = [one.dtype for one in tensors if one.dim() > 0] or [one.dtype for one in tensors]
    dtype = reduce(torch.promote_types, wide)
    fractions = any(
        isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point()) for value in args
    )
    return torch.promote_types(dtype, torch.get_default_dtype()) if fractions and not dtype.is_floating_point else dtype


@cache
def _keeps_shape(func: Any) -> bool:
    """Whether the result is a new tensor of the inputs' shape and type."""
    return (
        torch.Tag.pointwise in func.tags
        and not func._schema.is_mutable
        and func._schema.name.removeprefix("aten::") in _ARITHMETIC
    )


def counting_attention(ledger: Ledger) -> AttentionFunction:
    """Attention that holds what fused kernels hold (no N x S scores), writes its work down and computes nothing."""

    def attend(query_BHND: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, valid: Tensor | None) -> Tensor:
        out: Tensor = _Counted.apply(query_BHND, key_BHSD, value_BHSD, ledger)
        return out

    return attend


class _Counted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_BHND: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, ledger: Ledger) -> Tensor:
        out_BHND = torch.empty_like(query_BHND)
        norm_BHN = torch.empty(query_BHND.shape[:-1], device=query_BHND.device, dtype=torch.float32)
        ctx.ledger, ctx.product = ledger, 2 * query_BHND.numel() * key_BHSD.shape[-2]
        ctx.save_for_backward(query_BHND, key_BHSD, value_BHSD, out_BHND, norm_BHN)
        ledger.attention_flops += FORWARD_PRODUCTS * ctx.product
        return out_BHND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.ledger.attention_flops += BACKWARD_PRODUCTS * ctx.product
        return (*(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3]), None)


class BaseProducts:
    """Counts the products of tokens with the base's own matrices, whatever an adapter adds to them."""

    def __init__(self) -> None:
        self.flops = 0

    @contextmanager
    def counted(self, roots: Sequence[nn.Module]) -> Iterator[None]:
        """Within, whenever a layer of these networks runs."""
        handles = [layer.register_forward_hook(self._count) for root in roots for layer in layers_of(root)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self.flops += 2 * output.numel() * matrix_values(layer) // rows(layer)


def layers_of(root: nn.Module) -> list[nn.Module]:
    """The modules that multiply by a matrix: Linear and Conv1d layers, with an adapter on them or without."""
    return [module for module in root.modules() if isinstance(getattr(module, "weight", None), nn.Parameter)]


def matrix_values(layer: nn.Module) -> int:
    """How many values its matrix has."""
    assert isinstance(layer.weight, Tensor)
    return layer.weight.numel()


def rows(layer: nn.Module) -> int:
    """Output features."""
    assert isinstance(layer.weight, Tensor)
    return layer.weight.shape[0]
