"""Weight-only 8-bit quantisation of the frozen base: matrices of the transformer blocks, dequantised at each use.

Matrix products are those of the base precision, with the quantised weight W_q in place of W. Between uses one byte per
value is stored, and the backward pass dequantises again instead of keeping the wide copy. The storage is torchao's
(int8: symmetric, one float32 scale per output feature; fp8: float8_e4m3fn, likewise); its matrix product is not used,
because it rounds scales to the base precision on the way and its autograd keeps a wide copy of every weight.
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
    """A frozen Linear whose weight is stored in 8 bits and dequantised at each use."""

    def __init__(self, linear: nn.Linear, stored_OI: nn.Parameter, vectors: object | None) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = stored_OI
        self.register_parameter("bias", linear.bias)
        self.vectors = vectors
        """What `keep` of `quantize` returned for the weight before quantisation (such as its singular vectors)."""
        self.train(linear.training)

    def dense(self) -> Tensor:
        """W_q, (O, I), dequantised to the base precision."""
        stored: Any = self.weight.data
        wide: Tensor = stored.dequantize()
        return wide

    def product(self, tokens: Tensor, dense_OI: Tensor | None = None) -> Tensor:
        """W_q x + bias.

        Args:
            dense_OI: the result of `dense`, if the caller has it already.
        """
        out: Tensor = _DequantizedLinear.apply(tokens, self, self.dense() if dense_OI is None else dense_OI)
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        return self.product(tokens)


class _DequantizedLinear(torch.autograd.Function):
    """Linear that saves the layer for its backward, not the dequantised weight. Weight and bias are frozen."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, layer: QuantizedLinear, dense_OI: Tensor) -> Tensor:
        ctx.layer = layer
        return F.linear(tokens, dense_OI, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] @ ctx.layer.dense(), None, None


def usable_quantization(wanted: str, device: torch.device, say: Callable[[str], None]) -> str:
    """`wanted` if the device supports it; int8 in place of fp8 where it does not, reported by `say`.

    Raises:
        PackageMissing: torchao is not installed.
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
    """Quantise the matrices of all transformer blocks in place, one by one. Cast and move the network beforehand.

    The blocks hold 98 % of a published transformer. What every token and every block depends on keeps the base
    precision: input and output projections, timestep, prompt and duration embeddings. So does the conditioner, which is
    smaller than one matrix.

    Args:
        how: `int8` or `fp8`.
        keep: called with each layer's name and its weight (O, I) before quantisation; the layer stores the result as
            `vectors`.
    """
    config = _config(how)
    for name in quantized_layer_names(denoiser):
        linear = cast(nn.Linear, denoiser.get_submodule(name))
        kept = keep(name, linear.weight.detach())
        denoiser.set_submodule(name, QuantizedLinear(linear, _quantized(linear.weight, config), kept))


def quantization_of(denoiser: nn.Module) -> str:
    """`none`, `int8` or `fp8`: how the blocks are stored."""
    kinds = {FP8 if _is_float8(parameter) else INT8 for parameter in denoiser.parameters() if _is_quantized(parameter)}
    assert len(kinds) <= 1, "all matrices are quantised alike"
    return kinds.pop() if kinds else NONE


def parameter_bytes(network: nn.Module) -> int:
    """Memory of all parameters as stored; the dtype of a quantised weight is that of its dequantised values."""
    return sum(part.nbytes for parameter in network.parameters() for part in _parts(parameter.data))


def quantized_layer_names(denoiser: Denoiser) -> list[str]:
    """Names of the layers that `quantize` replaces: every Linear of the blocks."""
    blocks = set(denoiser.model.transformer.layers.modules())
    return [name for name, module in denoiser.named_modules() if module in blocks and isinstance(module, nn.Linear)]


def _config(how: str) -> Any:
    """torchao's config of `int8` or `fp8`."""
    quiet_torchao()
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig  # deferred: optional, seconds

    # Its torch.compile settings are global, and meant for inference.
    return {INT8: Int8WeightOnlyConfig, FP8: Float8WeightOnlyConfig}[how](set_inductor_config=False)


def _quantized(weight_OI: Tensor, config: Any) -> nn.Parameter:
    """The weight as a parameter in torchao's 8-bit storage."""
    from torchao.quantization import quantize_  # deferred: optional

    num_out, num_in = weight_OI.shape
    holder = nn.Linear(num_in, num_out, bias=False, device="meta")
    holder.weight = nn.Parameter(weight_OI.detach(), requires_grad=False)
    container = nn.Sequential(holder)
    quantize_(container, config)
    stored: Any = container[0].weight
    return nn.Parameter(stored.data, requires_grad=False)


def _parts(tensor: Any) -> Iterator[Tensor]:
    """The plain tensors inside a tensor subclass."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def _is_quantized(parameter: nn.Parameter) -> bool:
    return is_traceable_wrapper_subclass(parameter.data)


def _is_float8(parameter: nn.Parameter) -> bool:
    return any(part.dtype.is_floating_point and part.dtype.itemsize == 1 for part in _parts(parameter.data))
