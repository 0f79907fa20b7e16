"""Compiled transformer blocks: torch.compile, once per batch shape, for training on CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.adapters.ops.frozen_matmul import enable_kernels
from stages.adapters.ops.side_streams import SideStreams, use_side_streams
from stages.adapters.stacked.layer_group import StepPhase
from stages.adapters.stacked.stacked_adapter import StackedAdapter
from stages.models.nets.attention.attention import (
    masked_attention,
    replace_attention,
    replace_differential_attention,
    replace_heads,
)
from stages.models.nets.attention.differential import differential_attention, has_kernels_for_width
from stages.models.nets.attention.flex import FlexAttention
from stages.models.nets.attention.heads import eager_heads, fused_heads
from stages.models.nets.dit.transformer import Denoiser, apply_each, run_block
from stages.processes import temporary_environment


class CompiledNetwork:
    """A network whose blocks run compiled between `install` and `uninstall`, with fused attention and products."""

    def __init__(self, denoiser: Denoiser, layers: StackedAdapter, *, deterministic: bool) -> None:
        self.denoiser, self.layers = denoiser, layers
        self.head_width = denoiser.model.transformer.head_width
        self.narrow = denoiser.dtype != torch.float32
        self.compiled_block = torch.compile(
            run_block, dynamic=False, options=compile_options(deterministic=deterministic)
        )
        device = denoiser.model.transformer.memory_tokens.device
        self.attention = FlexAttention(device) if deterministic and self.narrow else masked_attention
        self.side_streams = SideStreams(device) if self.narrow and device.type == "cuda" else None

    def install(self) -> None:
        """Run compiled and fused code."""
        tower = self.denoiser.model.transformer
        tower.run_block, tower.apply_each = self.run_block, self.layers.run_each
        tower.checkpoint_options = {"preserve_rng_state": False}  # blocks draw no random numbers
        self.layers.batches_blocks, self.layers.joins_products = True, self.narrow
        self.layers.side_streams = self.side_streams
        if self.narrow:
            replace_heads(self.denoiser, fused_heads)
            replace_attention(self.denoiser, self.attention)
            replace_differential_attention(
                self.denoiser, differential_attention if has_kernels_for_width(self.head_width) else None
            )

    def uninstall(self) -> None:
        """Run the eager code again."""
        tower = self.denoiser.model.transformer
        replace_attention(self.denoiser, masked_attention)
        replace_differential_attention(self.denoiser, None)
        replace_heads(self.denoiser, eager_heads)
        tower.run_block, tower.apply_each, tower.checkpoint_options = run_block, apply_each, {}
        self.layers.batches_blocks, self.layers.joins_products = False, False
        self.layers.side_streams = None

    def run_block(self, block: nn.Module, *inputs: Any) -> Tensor:
        """A block, compiled; the backward pass calls it too, to recompute a checkpointed block."""
        import torch._dynamo  # deferred: compiling is for CUDA only

        self.layers.wait_for_phase(StepPhase.IN_BLOCKS)
        dynamo: Any = torch._dynamo.config
        with dynamo.patch(recompile_limit=64):  # in this thread: newer torch has settings per thread
            out: Tensor = self.compiled_block(block, *inputs)
        return out

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Context in which the eager code is run."""
        self.uninstall()
        try:
            yield
        finally:
            self.install()


@contextmanager
def compiled(
    denoiser: Denoiser, layers: StackedAdapter, caches: Path | None = None, *, deterministic: bool = True
) -> Iterator[CompiledNetwork]:
    """Context in which blocks run compiled, and layers that all blocks use alike are computed for all of them at once.

    One compilation per batch shape serves all blocks.

    Args:
        caches: folder that keeps compiled code between runs.
        deterministic: use only kernels that give the same bits every time; else the fastest attention.
    """
    network = CompiledNetwork(denoiser, layers, deterministic=deterministic)
    try:
        network.install()
        with (
            compile_caches(caches),
            compile_workers_kept(),
            attention_backends_by_speed(),
            enable_kernels(),
            use_side_streams(network.side_streams),
        ):
            start_compile_workers()
            yield network
    finally:
        network.uninstall()


def start_compile_workers() -> None:
    """Start torch's compile worker processes early: they take seconds until they are ready."""
    from torch._inductor import async_compile  # deferred: compiling is for CUDA only

    begin = getattr(async_compile, "maybe_warm_pool", None)
    if begin is not None:
        begin()


def compile_caches(caches: Path | None) -> AbstractContextManager[None]:
    """Context in which torch's and Triton's compilers keep compiled code in this folder; None: in their own."""
    folders = {} if caches is None else {"TORCHINDUCTOR_CACHE_DIR": caches, "TRITON_CACHE_DIR": caches / "triton"}
    return temporary_environment({name: str(folder) for name, folder in folders.items()})


@contextmanager
def attention_backends_by_speed() -> Iterator[None]:
    """Context in which torch tries its attention kernels in the order of their speed."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
    with sdpa_kernel(list(order), set_priority=True):
        yield


def compile_options(*, deterministic: bool) -> dict[str, Any]:
    """Options of torch.compile; global settings would not reach the thread that compiles the backward pass."""
    import torch._inductor.config

    wanted = {
        # Kernels chosen by timing could differ between two runs, and with them the last bits.
        "deterministic": deterministic,
        # What gradients on side streams still read must not be overwritten by the block's next kernel.
        "allow_buffer_reuse": False,
        "inplace_buffers": False,
    }
    return {name: value for name, value in wanted.items() if hasattr(torch._inductor.config, name)}


@contextmanager
def compile_workers_kept() -> Iterator[None]:
    """Context in which idle compile workers are kept: else they would be forked anew for the next shape."""
    import torch._inductor.config  # deferred: compiling is for CUDA only

    inductor: Any = torch._inductor.config
    name = "quiesce_async_compile_pool"
    with inductor.patch({name: False} if hasattr(inductor, name) else {}):
        yield
