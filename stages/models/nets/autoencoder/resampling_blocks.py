"""The autoencoder's resampling stage: patches to latent frames, or back, by a transformer over interleaved tokens.

B batch, L patches, T latent frames, C channels, N tokens of width W, S stride (patches of a frame), G = S + 1 tokens.
A frame's group holds its S patch tokens and its one frame token; the side that is not given starts as a learned token.
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
    """One side of the autoencoder as its config describes it."""

    audio_features: int
    """Channels of a patch: audio channels times samples of a patch."""
    width: int
    latent_channels: int
    stride: int
    depth: int
    head_width: int
    differential: bool
    num_sine_layers: int
    mapping_kernel: int
    noise_scale: float
    """Of the normals added to the learned tokens, in evaluation mode too (`mask_noise`)."""
    chunk_patches: int | None
    """Patches that see each other; None with a sliding window."""
    midpoint_shift: bool
    """The second half of the layers uses chunks moved by half their length."""
    window_frames: tuple[int, int] | None
    """Frames seen before and after; None with chunks."""

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return self.width // self.head_width

    @property
    def pad_unit(self) -> int:
        """Patches are padded to a multiple of this."""
        return self.chunk_patches or self.stride

    @property
    def group(self) -> int:
        """Tokens of one latent frame."""
        return self.stride + 1

    @property
    def chunk_tokens(self) -> int | None:
        """Tokens that see each other."""
        return None if self.chunk_patches is None else self.chunk_patches // self.stride * self.group

    @property
    def reach_frames(self) -> int:
        """An upper bound on how many frames ahead can influence a frame, through all layers together."""
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
    """Read the `encoder` or `decoder` section; raises UnsupportedModelConfig for what is not built."""
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
    _refuse_odd_spans(where, read)
    return read


def _refuse_odd_spans(where: str, read: ResamplingConfig) -> None:
    if read.width % read.head_width:
        raise UnsupportedModelConfig(where, f"a width of {read.width} is no multiple of dim_heads = {read.head_width}")
    if read.chunk_patches is None and read.window_frames is None:
        raise UnsupportedModelConfig(where, "it has neither chunk_size nor sliding_window")
    if read.chunk_patches is not None:
        unit = read.stride * (2 if read.midpoint_shift else 1)
        if read.chunk_patches % unit:
            raise UnsupportedModelConfig(where, f"chunk_size = {read.chunk_patches} must be a multiple of {unit}")


class ResamplingBlock(nn.Module):
    """x <- x + Attn(norm x); x <- x + FF(norm x). Each block has its own table of rotary frequencies."""

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
        # Counted from the end, and one fewer than the option says: with 8 of 12 layers, layers 5 to 11.
        periodic = config.depth - layer < config.num_sine_layers
        self.ff = FeedForward(config.width, FEED_FORWARD_MULTIPLE * config.width, sine if periodic else F.silu)
        self.rope = RotaryEmbedding(config.head_width // 2)

    def forward(self, token_BNW: Tensor) -> Tensor:
        token_BNW = token_BNW + self.self_attn(self.pre_norm(token_BNW), self.rope(token_BNW.shape[1]))
        return token_BNW + self.ff(self.ff_norm(token_BNW))


RunBlock = Callable[[ResamplingBlock, Tensor], Tensor]
"""(block, its tokens) to the next tokens."""


def run_block(block: ResamplingBlock, token_BNW: Tensor) -> Tensor:
    """As it is."""
    out: Tensor = block(token_BNW)
    return out


class WeightNormConv(nn.Module):
    """Convolution over time that keeps the length, with w = g v / |v| per output channel.

    Source: Salimans & Kingma 2016, arXiv:1602.07868.
    """

    def __init__(self, num_in: int, num_out: int, kernel: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.zeros(num_out, 1, 1))
        self.weight_v = nn.Parameter(torch.zeros(num_out, num_in, kernel))
        self.bias = nn.Parameter(torch.zeros(num_out))

    def forward(self, x_BCL: Tensor) -> Tensor:
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(1, 2), keepdim=True))
        if weight.shape[-1] == 1 and x_BCL.is_cuda:
            # cuDNN rounds a float32 convolution's inputs to 19 bits unless told not to; a product is exact.
            return F.linear(x_BCL.transpose(1, 2), weight[..., 0], self.bias).transpose(1, 2)
        return F.conv1d(x_BCL, weight, self.bias, padding=weight.shape[-1] // 2)


class ResamplingTransformer(nn.Module):
    """Mapping convolution, learned token and transformer; `Downsampling` and `Upsampling` order the tokens."""

    def __init__(self, config: ResamplingConfig, mapping: WeightNormConv) -> None:
        super().__init__()
        self.config = config
        self.new_tokens = nn.Parameter(torch.zeros(1, 1, config.width))
        self.mapping = mapping
        self.transformers = nn.ModuleList(ResamplingBlock(config, layer) for layer in range(config.depth))
        self.run_block: RunBlock = run_block

    def new_tokens_for(self, batch: int, num_frames: int, num_new: int, noise: Noise) -> Tensor:
        """(B, T, num_new, W): the learned token, plus `mask_noise` times normals of shape (B * T, num_new, W)."""
        token = self.new_tokens.expand(batch * num_frames, num_new, self.config.width)
        if self.config.noise_scale > 0:
            normals = unit_normals(noise, tuple(token.shape), token)
            token = token if normals is None else token + self.config.noise_scale * normals
        return token.unflatten(0, (batch, num_frames))

    def transformed(self, token_BNW: Tensor) -> Tensor:
        """(B, N, W) through all layers, in chunks or windows."""
        size = self.config.chunk_tokens
        if size is None:
            return self._through(self.transformers, token_BNW)
        half = len(self.transformers) // 2 if self.config.midpoint_shift else len(self.transformers)
        token_BNW = self._through_chunks(self.transformers[:half], token_BNW, size)
        if not self.config.midpoint_shift:
            return token_BNW
        # The outer half chunks are doubled, so that the moved chunks are whole; the copies take part and are dropped.
        shift = size // 2
        doubled = torch.cat([token_BNW[:, :shift], token_BNW, token_BNW[:, -shift:]], dim=1)
        return self._through_chunks(self.transformers[half:], doubled, size)[:, shift:-shift]

    def _through(self, blocks: Iterable[nn.Module], token_BNW: Tensor) -> Tensor:
        for block in blocks:
            token_BNW = self.run_block(cast(ResamplingBlock, block), token_BNW)
        return token_BNW

    def _through_chunks(self, blocks: Iterable[nn.Module], token_BNW: Tensor, size: int) -> Tensor:
        """Through blocks that see `size` tokens at a time; rotary positions count within a chunk."""
        folded = token_BNW.reshape(-1, size, token_BNW.shape[-1])
        return self._through(blocks, folded).reshape(token_BNW.shape)


class Downsampling(ResamplingTransformer):
    """Patches (B, C, L) to frame tokens (B, T, W): groups of [S patches, 1 new], the new one is kept."""

    def __init__(self, config: ResamplingConfig) -> None:
        super().__init__(config, WeightNormConv(config.audio_features, config.width, config.mapping_kernel))

    def forward(self, patch_BCL: Tensor, token_noise: Noise) -> Tensor:
        # Padding comes before the mapping: silence is the mapping's bias, not zero.
        patch_BCL = F.pad(patch_BCL, (0, -patch_BCL.shape[-1] % self.config.pad_unit))
        patch_BTSW = self.mapping(patch_BCL).transpose(1, 2).unflatten(1, (-1, self.config.stride))
        batch, num_frames = patch_BTSW.shape[:2]
        new_BT1W = self.new_tokens_for(batch, num_frames, 1, token_noise)
        group_BTGW = torch.cat([patch_BTSW, new_BT1W], dim=2)
        token_BNW = self.transformed(group_BTGW.flatten(1, 2))
        return token_BNW.unflatten(1, (num_frames, -1))[:, :, -1]


class Upsampling(ResamplingTransformer):
    """Frame tokens (B, T, W) to patches (B, C, L): groups of [1 frame, S new], the new ones are kept."""

    def __init__(self, config: ResamplingConfig) -> None:
        super().__init__(config, WeightNormConv(config.width, config.audio_features, config.mapping_kernel))

    def forward(self, frame_BTW: Tensor, token_noise: Noise) -> Tensor:
        frame_BTW = F.pad(frame_BTW, (0, 0, 0, -frame_BTW.shape[1] % (self.config.pad_unit // self.config.stride)))
        batch, num_frames = frame_BTW.shape[:2]
        new_BTSW = self.new_tokens_for(batch, num_frames, self.config.stride, token_noise)
        group_BTGW = torch.cat([frame_BTW[:, :, None], new_BTSW], dim=2)
        token_BNW = self.transformed(group_BTGW.flatten(1, 2))
        patch_BLW = token_BNW.unflatten(1, (num_frames, -1))[:, :, 1:].flatten(1, 2)
        return self.mapping(patch_BLW.transpose(1, 2))
