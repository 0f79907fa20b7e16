"""The frozen base in 8 bits: the matrices of the transformer's blocks stored small, and widened at each use.

Weights only: products are those of the base precision, with the rounded weight W_q in place of W. Between uses one byte
per value is kept, and a backward pass widens again instead of holding on to the wide copy. What is stored is torchao's
(int8: symmetric, one float32 scale per output feature; fp8: float8_e4m3fn, likewise); its own product is not used, for
its scales are rounded to the base precision on the way and its autograd keeps a wide copy of every weight.

O out features, I in features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from stages.errors import PackageMissing
from stages.models.library_logging import quiet_torchao
from stages.models.nets.dit.transformer import Denoiser

PACKAGE = "torchao"
NONE, INT8, FP8 = "none", "int8", "fp8"


class QuantizedLinear(nn.Linear):
    """A frozen Linear whose weight is stored in 8 bits."""

    def __init__(self, linear: nn.Linear, stored_OI: nn.Parameter, vectors: object | None) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = stored_OI
        self.register_parameter("bias", linear.bias)
        self.vectors = vectors
        """What `quantize` was told to keep of the weight before it was rounded."""
        self.train(linear.training)

    def dense(self) -> Tensor:
        """W_q (out, in) in the base precision, made anew."""
        stored: Any = self.weight.data
        wide: Tensor = stored.dequantize()
        return wide

    def product(self, tokens: Tensor, dense_OI: Tensor | None = None) -> Tensor:
        """W_q x + bias.

        Args:
            dense_OI: what `dense` gave, where the caller has it already.
        """
        out: Tensor = _WidenedProduct.apply(tokens, self, self.dense() if dense_OI is None else dense_OI)
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        return self.product(tokens)


class _WidenedProduct(torch.autograd.Function):
    """A product that keeps the layer for its backward, not the wide weight. The layer is frozen, its bias too."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, layer: QuantizedLinear, dense_OI: Tensor) -> Tensor:
        ctx.layer = layer
        return F.linear(tokens, dense_OI, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] @ ctx.layer.dense(), None, None


def usable_quantization(wanted: str, device: torch.device, say: Callable[[str], None]) -> str:
    """`wanted` where the device can hold and widen it; in place of fp8, int8 works everywhere, and is then said.

    Raises:
        PackageMissing: the extra is not installed.
    """
    if wanted != NONE and find_spec(PACKAGE) is None:
        raise PackageMissing(f"base_quantization {wanted}", PACKAGE)
    if wanted != FP8:
        return wanted
    try:
        torch.ones(8, device=device).to(torch.float8_e4m3fn).to(torch.bfloat16).sum().item()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        say(f"{device} cannot hold fp8 ({error}); the base is kept in int8")
        return INT8
    return FP8


@torch.no_grad()
def quantize(
    denoiser: Denoiser, how: str, keep: Callable[[str, Tensor], object] = lambda name, weight_OI: None
) -> None:
    """Store the matrices of all blocks in 8 bits, one after the other. Cast and move the network first.

    The blocks hold 98 % of a published transformer. What is left is what every token and every block depends on (input
    and output projections, timestep, prompt and duration embeddings), and the conditioner is smaller than one matrix.

    Args:
        how: `int8` or `fp8`.
        keep: called with each layer's name and its weight (out, in) before that is rounded; the layer keeps what this
            returns as `vectors`.
    """
    config = _config(how)
    for name in quantized_layer_names(denoiser):
        linear = cast(nn.Linear, denoiser.get_submodule(name))
        kept = keep(name, linear.weight.detach())
        denoiser.set_submodule(name, QuantizedLinear(linear, _stored(linear.weight, config), kept))


def quantization_of(denoiser: nn.Module) -> str:
    """`none`, `int8` or `fp8`: what the blocks are really stored in."""
    kinds = {FP8 if _is_float8(parameter) else INT8 for parameter in denoiser.parameters() if _is_stored(parameter)}
    assert len(kinds) <= 1, "all matrices are stored alike"
    return kinds.pop() if kinds else NONE


def parameter_bytes(network: nn.Module) -> int:
    """Memory of all parameters as they are stored: an 8-bit weight calls itself by the precision it is widened to."""
    return sum(part.nbytes for parameter in network.parameters() for part in _parts(parameter.data))


def quantized_layer_names(denoiser: Denoiser) -> list[str]:
    """Names of the layers that are stored small: every Linear of the blocks."""
    blocks = set(denoiser.model.transformer.layers.modules())
    return [name for name, module in denoiser.named_modules() if module in blocks and isinstance(module, nn.Linear)]


def _config(how: str) -> Any:
    """Torchao's name for it."""
    quiet_torchao()
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig  # deferred: optional, seconds

    # Its settings for torch's compiler are global, and meant for inference.
    return {INT8: Int8WeightOnlyConfig, FP8: Float8WeightOnlyConfig}[how](set_inductor_config=False)


def _stored(weight_OI: Tensor, config: Any) -> nn.Parameter:
    from torchao.quantization import quantize_  # deferred: optional

    num_out, num_in = weight_OI.shape
    holder = nn.Linear(num_in, num_out, bias=False, device="meta")
    holder.weight = nn.Parameter(weight_OI.detach(), requires_grad=False)
    whole = nn.Sequential(holder)
    quantize_(whole, config)
    stored: Any = whole[0].weight
    return nn.Parameter(stored.data, requires_grad=False)


def _parts(tensor: Any) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def _is_stored(parameter: nn.Parameter) -> bool:
    return is_traceable_wrapper_subclass(parameter.data)


def _is_float8(parameter: nn.Parameter) -> bool:
    return any(part.dtype.is_floating_point and part.dtype.itemsize == 1 for part in _parts(parameter.data))
