"""The autoencoder's transformers that resample between patches and latent frames, over interleaved tokens.

Each latent frame has a group of stride + 1 tokens: those of its patches and one of its own. The tokens of the input are
given, those of the output start as one learned token. In `_BTNW`, N counts the tokens of one frame's group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.errors import UnsupportedModelConfig
from stages.models.nets.attention.attention import SelfAttention
from stages.models.nets.attention.rotary import RotaryEmbedding
from stages.models.nets.autoencoder.noise import Noise, unit_normals
from stages.models.nets.config_checks import refuse_unknown, require, single
from stages.models.nets.feed_forward import FeedForward, sine
from stages.models.nets.norms import DynamicTanh

FEED_FORWARD_MULTIPLE = 3


@dataclass(frozen=True, kw_only=True)
class ResamplingConfig:
    """Options of the encoder or decoder section of a model_config.json."""

    audio_features: int
    """Values of a patch: audio channels times patch size."""
    width: int
    latent_channels: int
    stride: int
    """Patches per latent frame."""
    depth: int
    head_width: int
    differential: bool
    num_sine_layers: int
    """Upper bound of the last layers whose feed-forward gate is a sine; see `ResamplingBlock`."""
    mapping_kernel: int
    noise_scale: float
    """Standard deviation of the noise added to the learned tokens, in evaluation mode too (`mask_noise`)."""
    chunk_patches: int | None
    """Chunked attention: patches that attend to each other; None with a sliding window."""
    midpoint_shift: bool
    """Chunked attention: the second half of the layers uses chunks shifted by half a chunk."""
    window_frames: tuple[int, int] | None
    """Sliding-window attention: frames before and after; None with chunks."""

    @property
    def num_heads(self) -> int:
        """Attention heads of a block."""
        return self.width // self.head_width

    @property
    def pad_unit(self) -> int:
        """The number of patches is padded to a multiple of this."""
        return self.chunk_patches or self.stride

    @property
    def group(self) -> int:
        """Tokens per latent frame."""
        return self.stride + 1

    @property
    def chunk_tokens(self) -> int | None:
        """Tokens of an attention chunk; None with a sliding window."""
        return None if self.chunk_patches is None else self.chunk_patches // self.stride * self.group

    @property
    def reach_frames(self) -> int:
        """Upper bound of the look-ahead of all layers together, in latent frames."""
        if self.window_frames is not None:
            return self.depth * self.window_frames[1]
        return 2 * self.pad_unit // self.stride


_READ = frozenset(
    {
        "in_channels",
        "out_channels",
        "channels",
        "c_mults",
        "strides",
        "latent_dim",
        "transformer_depths",
        "differential",
        "dyt",
        "dim_heads",
        "variable_stride",
        "chunk_size",
        "chunk_midpoint_shift",
        "sliding_window",
        "sinusoidal_blocks",
        "conv_mapping",
        "mask_noise",
    }
)


def resampling_config(where: str, config: Mapping[str, Any]) -> ResamplingConfig:
    """The options of an `encoder` or `decoder` section. Raises UnsupportedModelConfig for unsupported ones."""
    options = config["config"]
    require(where, config, "type", ("same", "taae_v2"))
    refuse_unknown(where, options, _READ)
    require(where, options, "dyt", (True,), False)
    require(where, options, "variable_stride", (True,), False)
    width = options["channels"] * single(where, options, "c_mults")
    window, chunk = options.get("sliding_window"), options.get("chunk_size")
    read = ResamplingConfig(
        audio_features=options.get("in_channels", options.get("out_channels")),
        width=width,
        latent_channels=options["latent_dim"],
        stride=single(where, options, "strides"),
        depth=single(where, options, "transformer_depths"),
        head_width=options["dim_heads"],
        differential=bool(options.get("differential", False)),
        num_sine_layers=single(where, options, "sinusoidal_blocks", 0),
        mapping_kernel=3 if options.get("conv_mapping", False) else 1,
        noise_scale=float(options.get("mask_noise", 0.0)),
        chunk_patches=None if window else chunk,
        midpoint_shift=bool(options.get("chunk_midpoint_shift", False)),
        window_frames=tuple(window) if window else None,
    )
    _check_attention_spans(where, read)
    return read


def _check_attention_spans(where: str, read: ResamplingConfig) -> None:
    if not (isinstance(read.stride, int) and read.stride > 0):
        raise UnsupportedModelConfig(where, f"strides = {[read.stride]!r} must be a positive number")
    if read.width % read.head_width:
        raise UnsupportedModelConfig(where, f"a width of {read.width} is no multiple of dim_heads = {read.head_width}")
    if read.chunk_patches is None and read.window_frames is None:
        raise UnsupportedModelConfig(where, "it has neither chunk_size nor sliding_window")
    if read.chunk_patches is not None:
        unit = read.stride * (2 if read.midpoint_shift else 1)
        if read.chunk_patches % unit:
            raise UnsupportedModelConfig(where, f"chunk_size = {read.chunk_patches} must be a multiple of {unit}")


class ResamplingBlock(nn.Module):
    """Pre-norm transformer block: x <- x + Attn(norm x); x <- x + FF(norm x), with DyT norms.

    Each block has its own table of rotary frequencies, as in the published checkpoints.
    """

    def __init__(self, config: ResamplingConfig, layer: int) -> None:
        super().__init__()
        window = None
        if config.window_frames is not None:
            window = (config.window_frames[0] * config.group, config.window_frames[1] * config.group)
        self.num_heads, self.maps, self.window = config.num_heads, 2 if config.differential else 1, window
        self.pre_norm = DynamicTanh(config.width)
        self.self_attn = SelfAttention(
            config.width, config.num_heads, DynamicTanh, differential=config.differential, window=window
        )
        self.ff_norm = DynamicTanh(config.width)
        # Counted from the end, and one fewer than the option says: 8 of 12 layers means layers 5 to 11.
        has_sine = config.depth - layer < config.num_sine_layers
        self.ff = FeedForward(config.width, FEED_FORWARD_MULTIPLE * config.width, sine if has_sine else F.silu)
        self.rope = RotaryEmbedding(config.head_width // 2)

    def forward(self, token_BNW: Tensor) -> Tensor:
        token_BNW = token_BNW + self.self_attn(self.pre_norm(token_BNW), self.rope(token_BNW.shape[1]))
        return token_BNW + self.ff(self.ff_norm(token_BNW))


RunBlock = Callable[[ResamplingBlock, Tensor], Tensor]
"""(block, tokens_BNW) to the next tokens."""


def run_block(block: ResamplingBlock, token_BNW: Tensor) -> Tensor:
    """The block's own forward."""
    out: Tensor = block(token_BNW)
    return out


class WeightNormConv(nn.Module):
    """Length-preserving 1-d convolution with weight normalisation, w = g v / |v| per output channel.

    Source: Salimans & Kingma 2016, arXiv:1602.07868.
    """

    def __init__(self, num_in: int, num_out: int, kernel: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.zeros(num_out, 1, 1))
        self.weight_v = nn.Parameter(torch.zeros(num_out, num_in, kernel))
        self.bias = nn.Parameter(torch.zeros(num_out))

    def forward(self, signal: Tensor) -> Tensor:
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(1, 2), keepdim=True))
        if weight.shape[-1] == 1 and signal.is_cuda:
            # cuDNN rounds the inputs of a float32 convolution to TF32 (19 bits) unless told not to; F.linear does not.
            return F.linear(signal.transpose(1, 2), weight[..., 0], self.bias).transpose(1, 2)
        return F.conv1d(signal, weight, self.bias, padding=weight.shape[-1] // 2)


class ResamplingTransformer(nn.Module):
    """Mapping convolution, learned token and transformer blocks, shared by `Downsampling` and `Upsampling`."""

    def __init__(self, config: ResamplingConfig, mapping: WeightNormConv) -> None:
        super().__init__()
        self.config = config
        self.new_tokens = nn.Parameter(torch.zeros(1, 1, config.width))
        self.mapping = mapping
        self.transformers = nn.ModuleList(ResamplingBlock(config, layer) for layer in range(config.depth))
        self.run_block: RunBlock = run_block

    def new_tokens_for(self, batch: int, num_frames: int, num_new: int, noise: Noise) -> Tensor:
        """(B, T, num_new, W): the learned token plus `mask_noise` times noise of shape (B * T, num_new, W)."""
        token = self.new_tokens.expand(batch * num_frames, num_new, self.config.width)
        if self.config.noise_scale > 0:
            normals = unit_normals(noise, tuple(token.shape), token)
            token = token if normals is None else token + self.config.noise_scale * normals
        return token.unflatten(0, (batch, num_frames))

    def through_blocks(self, token_BNW: Tensor) -> Tensor:
        """(B, N, W) tokens through all blocks, with chunked or sliding-window attention."""
        size = self.config.chunk_tokens
        if size is None:
            return self._run_blocks(self.transformers, token_BNW)
        half = len(self.transformers) // 2 if self.config.midpoint_shift else len(self.transformers)
        token_BNW = self._run_chunks(self.transformers[:half], token_BNW, size)
        if not self.config.midpoint_shift:
            return token_BNW
        # The outer half chunks are repeated, so that shifted chunks are whole; the copies take part and are dropped.
        shift = size // 2
        extended_BNW = torch.cat([token_BNW[:, :shift], token_BNW, token_BNW[:, -shift:]], dim=1)
        return self._run_chunks(self.transformers[half:], extended_BNW, size)[:, shift:-shift]

    def _run_blocks(self, blocks: Iterable[nn.Module], token_BNW: Tensor) -> Tensor:
        for block in blocks:
            token_BNW = self.run_block(cast(ResamplingBlock, block), token_BNW)
        return token_BNW

    def _run_chunks(self, blocks: Iterable[nn.Module], token_BNW: Tensor, size: int) -> Tensor:
        """Chunked attention: N is a multiple of `size`, and rotary positions restart in each chunk."""
        chunks_BNW = token_BNW.reshape(-1, size, token_BNW.shape[-1])
        return self._run_blocks(blocks, chunks_BNW).reshape(token_BNW.shape)


class Downsampling(ResamplingTransformer):
    """Patches to frame tokens (B, T, W): groups of [patches, 1 new token], of which the new one is kept."""

    def __init__(self, config: ResamplingConfig) -> None:
        super().__init__(config, WeightNormConv(config.audio_features, config.width, config.mapping_kernel))

    def forward(self, patches: Tensor, token_noise: Noise) -> Tensor:
        # Padded before the mapping: silence becomes the mapping's bias, not zero.
        patches = F.pad(patches, (0, -patches.shape[-1] % self.config.pad_unit))
        patch_BTNW = self.mapping(patches).transpose(1, 2).unflatten(1, (-1, self.config.stride))
        batch, num_frames = patch_BTNW.shape[:2]
        new_BT1W = self.new_tokens_for(batch, num_frames, 1, token_noise)
        group_BTNW = torch.cat([patch_BTNW, new_BT1W], dim=2)
        token_BNW = self.through_blocks(group_BTNW.flatten(1, 2))
        return token_BNW.unflatten(1, (num_frames, -1))[:, :, -1]


class Upsampling(ResamplingTransformer):
    """Frame tokens (B, T, W) to patches: groups of [1 frame, new tokens], of which the new ones are kept."""

    def __init__(self, config: ResamplingConfig) -> None:
        super().__init__(config, WeightNormConv(config.width, config.audio_features, config.mapping_kernel))

    def forward(self, frame_BTW: Tensor, token_noise: Noise) -> Tensor:
        frame_BTW = F.pad(frame_BTW, (0, 0, 0, -frame_BTW.shape[1] % (self.config.pad_unit // self.config.stride)))
        batch, num_frames = frame_BTW.shape[:2]
        new_BTNW = self.new_tokens_for(batch, num_frames, self.config.stride, token_noise)
        group_BTNW = torch.cat([frame_BTW[:, :, None], new_BTNW], dim=2)
        token_BNW = self.through_blocks(group_BTNW.flatten(1, 2))
        patch_BNW = token_BNW.unflatten(1, (num_frames, -1))[:, :, 1:].flatten(1, 2)
        return self.mapping(patch_BNW.transpose(1, 2))
