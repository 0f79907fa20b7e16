"""What goes into a stack of layers, feature by feature in its new length: x diag(q), rounded once.

In one kernel each way on CUDA; operation by operation its gradients take seven, each over all of x in float32. Within
a block torch's compiler joins them to what stands beside them, and this is not used.

L layers, M tokens, I in features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stages.adapters.ops.frozen_matmul import uses_kernels


def in_scaled(tokens_LMI: Tensor, scale_LI: Tensor) -> Tensor:
    """(L, M, I) in the dtype of the tokens, which may be one for all layers, expanded; the scale is float32."""
    if not (tokens_LMI.is_cuda and uses_kernels()):
        return (tokens_LMI * scale_LI[:, None]).to(tokens_LMI.dtype)
    scaled_LMI: Tensor = _InScale.apply(tokens_LMI, scale_LI.contiguous())
    return scaled_LMI


class _InScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens_LMI: Tensor, scale_LI: Tensor) -> Tensor:
        from stages.adapters.ops.kernels import (
            input_scale as kernels,  # deferred: Triton comes with CUDA builds of torch
        )

        ctx.save_for_backward(tokens_LMI, scale_LI)
        return kernels.in_scaled(tokens_LMI, scale_LI)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        from stages.adapters.ops.kernels import input_scale as kernels  # deferred, as above

        needs_tokens = ctx.needs_input_grad[0]
        return kernels.in_scaled_backward(grads[0].contiguous(), *ctx.saved_tensors, needs_tokens=needs_tokens)
