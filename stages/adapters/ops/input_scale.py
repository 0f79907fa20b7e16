"""Inputs of a stack of layers scaled per feature, x diag(q), rounded once.

On CUDA one kernel each for forward and backward; with torch's operations the gradients take seven, each over all of x
in float32. Inside a block torch.compile fuses them with their neighbours, and this module is not used.

Letters: L layers of one shape, M tokens, I input features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stages.adapters.ops.frozen_matmul import kernels_enabled


def scaled_inputs(tokens_LMI: Tensor, scale_LI: Tensor) -> Tensor:
    """x diag(q), (L, M, I) in the dtype of the tokens, which may be expanded over layers; the scale is float32."""
    if not (tokens_LMI.is_cuda and kernels_enabled()):
        return (tokens_LMI * scale_LI[:, None]).to(tokens_LMI.dtype)
    scaled_LMI: Tensor = _ScaledInputs.apply(tokens_LMI, scale_LI.contiguous())
    return scaled_LMI


class _ScaledInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens_LMI: Tensor, scale_LI: Tensor) -> Tensor:
        from stages.adapters.ops.kernels import (
            input_scale as kernels,  # deferred: Triton comes with CUDA builds of torch
        )

        ctx.save_for_backward(tokens_LMI, scale_LI)
        return kernels.scaled_inputs(tokens_LMI, scale_LI)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        from stages.adapters.ops.kernels import input_scale as kernels  # deferred, as above

        needs_tokens = ctx.needs_input_grad[0]
        return kernels.scaled_inputs_backward(grads[0].contiguous(), *ctx.saved_tensors, needs_tokens=needs_tokens)
