"""The diffusion transformer (DiT): noised latents, timestep and conditioning to a velocity.

N counts memory tokens, then frames. The local condition has E = C + 1 channels: inpaint mask, then given latents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.models.nets.attention.attention import CrossAttention, SelfAttention
from stages.models.nets.attention.rotary import RotaryAngles, RotaryEmbedding
from stages.models.nets.config_checks import refuse_unknown, require, section
from stages.models.nets.dit.conditioning import Conditioning
from stages.models.nets.dit.fourier_features import fourier_features
from stages.models.nets.feed_forward import FeedForward, mlp
from stages.models.nets.norms import RMSNorm

TOKEN_NORM_EPS, HEAD_NORM_EPS = 1e-5, 1e-6
TIMESTEP_FEATURES = 256
MIN_ROTATED = 32


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of a diffusion transformer."""

    latent_channels: int
    width: int
    depth: int
    num_heads: int
    context_width: int
    global_width: int
    local_channels: int
    timestep_features: int
    num_memory_tokens: int
    inner_width: int
    differential: bool


_READ = frozenset(
    {
        "io_channels",
        "embed_dim",
        "depth",
        "num_heads",
        "cond_token_dim",
        "global_cond_dim",
        "local_add_cond_dim",
        "global_cond_type",
        "timestep_features_type",
        "timestep_features_dim",
        "timestep_features_logsnr",
        "attn_kwargs",
        "norm_type",
        "norm_kwargs",
        "ff_kwargs",
        "num_memory_tokens",
        "patch_size",
        "project_cond_tokens",
        "project_global_cond",
    }
)


def transformer_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Sizes from the diffusion section of a model_config.json. Raises UnsupportedModelConfig."""
    diffusion = section("model", section("whole", config, "model"), "diffusion")
    where, options = "diffusion", section("diffusion", diffusion, "config")
    require(where, diffusion, "type", ("dit",))
    refuse_unknown(where, options, _READ)
    _require_supported_options(where, options)
    attention, norm, feed_forward = (options.get(key, {}) for key in ("attn_kwargs", "norm_kwargs", "ff_kwargs"))
    refuse_unknown(where, attention, ("qk_norm", "qk_norm_eps", "differential"))
    refuse_unknown(where, norm, ("force_fp32", "eps"))
    refuse_unknown(where, feed_forward, ("mult",))
    require(where, attention, "qk_norm", ("rms",))
    require(where, norm, "force_fp32", (True,), False)
    return TransformerConfig(
        latent_channels=options["io_channels"],
        width=options["embed_dim"],
        depth=options["depth"],
        num_heads=options["num_heads"],
        context_width=options["cond_token_dim"],
        global_width=options["global_cond_dim"],
        local_channels=options["local_add_cond_dim"],
        timestep_features=options.get("timestep_features_dim", TIMESTEP_FEATURES),
        num_memory_tokens=options.get("num_memory_tokens", 0),
        inner_width=int(options["embed_dim"] * feed_forward.get("mult", 4)),
        differential=bool(attention.get("differential", False)),
    )


def _require_supported_options(where: str, options: Mapping[str, Any]) -> None:
    require(where, options, "global_cond_type", ("adaLN",))
    require(where, options, "timestep_features_type", ("expo",))
    require(where, options, "timestep_features_logsnr", (False,), False)
    require(where, options, "norm_type", ("rms_norm",))
    require(where, options, "patch_size", (1,), 1)
    require(where, options, "project_cond_tokens", (True,), True)
    require(where, options, "project_global_cond", (True,), True)


class TransformerBlock(nn.Module):
    """Residual self-attention, cross-attention, local condition and feed-forward, modulated by adaLN.

    adaLN (Peebles & Xie 2023, arXiv:2212.09748) scales and shifts the input of self-attention and feed-forward and
    gates their output. Its six parameters are one vector, shared by all blocks, plus a learned offset per block; gates
    are sigmoid(1 - gate).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, head_norm = config.width, partial(RMSNorm, eps=HEAD_NORM_EPS)
        sizes = (width, config.num_heads, head_norm)
        self.to_scale_shift_gate = nn.Parameter(torch.zeros(6 * width))
        self.pre_norm = RMSNorm(width, TOKEN_NORM_EPS)
        self.self_attn = SelfAttention(*sizes, differential=config.differential)
        self.cross_attend_norm = RMSNorm(width, TOKEN_NORM_EPS)
        self.cross_attn = CrossAttention(*sizes, differential=config.differential)
        self.ff_norm = RMSNorm(width, TOKEN_NORM_EPS)
        self.ff = FeedForward(width, config.inner_width)
        self.to_local_embed = mlp(config.local_channels, width, width)

    def forward(
        self,
        token_BNW: Tensor,
        key_value_BSO: Tensor,
        modulation_B1O: Tensor,
        local_BTW: Tensor,
        rotary: RotaryAngles,
        valid_BN: Tensor | None,
    ) -> Tensor:
        """The next tokens (B, N, W).

        Args:
            key_value_BSO, local_BTW: this block's projections of context and local condition; they do not depend on
                the tokens and are computed for all blocks beforehand (`TokenTransformer.apply_each`).
            modulation_B1O: adaLN parameters shared by all blocks, O = 6 W.
        """
        parts = (self.to_scale_shift_gate + modulation_B1O).chunk(6, dim=-1)
        scale, shift, gate, ff_scale, ff_shift, ff_gate = parts
        attended = self.self_attn(self.pre_norm(token_BNW) * (1 + scale) + shift, rotary, valid_BN)
        token_BNW = token_BNW + torch.sigmoid(1 - gate) * attended
        token_BNW = token_BNW + self.cross_attn(self.cross_attend_norm(token_BNW), key_value_BSO)
        # Memory tokens get exact zeros, not the projection of zeros.
        num_memory = token_BNW.shape[1] - local_BTW.shape[1]
        token_BNW = token_BNW + F.pad(local_BTW, (0, 0, num_memory, 0))
        transformed = self.ff(self.ff_norm(token_BNW) * (1 + ff_scale) + ff_shift)
        return token_BNW + torch.sigmoid(1 - ff_gate) * transformed


_IN_BLOCKS = re.compile(r"transformer\.layers\.\d+\.")
_TOKEN_INDEPENDENT = re.compile(_IN_BLOCKS.pattern + r"(cross_attn\.to_kv|to_local_embed)\b")


def runs_once_for_all_blocks(name: str) -> bool:
    """Whether the layer of this name is one that `TokenTransformer.apply_each` runs for all blocks at once."""
    return _TOKEN_INDEPENDENT.search(name) is not None


def runs_inside_blocks(name: str) -> bool:
    """Whether the layer of this name is one that `TokenTransformer.run_block` runs."""
    return _IN_BLOCKS.search(name) is not None and not runs_once_for_all_blocks(name)


ApplyEach = Callable[[Sequence[nn.Module], Tensor], Sequence[Tensor] | Tensor]
"""(modules, input) to the output of each module."""
RunBlock = Callable[..., Tensor]
"""(block, *inputs) to its output."""


def apply_each(modules: Sequence[nn.Module], tokens: Tensor) -> Sequence[Tensor]:
    """The outputs of the modules, computed one after the other."""
    return [module(tokens) for module in modules]


def run_block(block: nn.Module, *inputs: Any) -> Tensor:
    """The block's own forward."""
    out: Tensor = block(*inputs)
    return out


class TokenTransformer(nn.Module):
    """The transformer over memory tokens and frames: (B, T, C) to (B, T, C)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.memory_tokens = nn.Parameter(torch.zeros(config.num_memory_tokens, config.width))
        self.layers = nn.ModuleList(TransformerBlock(config) for _ in range(config.depth))
        self.project_in = nn.Linear(config.latent_channels, config.width, bias=False)
        self.project_out = nn.Linear(config.width, config.latent_channels, bias=False)
        self.head_width = config.width // config.num_heads
        self.rotary_pos_emb = RotaryEmbedding(max(config.width // config.num_heads // 2, MIN_ROTATED))
        self.global_cond_embedder = mlp(config.width, config.width, 6 * config.width)
        self.checkpointing = False
        """Gradient checkpointing: recompute each block in the backward pass; less memory, a third more time."""
        self.apply_each: ApplyEach = apply_each
        self.run_block: RunBlock = run_block
        self.checkpoint_options: dict[str, Any] = {}

    def forward(
        self, frame_BTC: Tensor, context_BSW: Tensor, global_BW: Tensor, local_BTE: Tensor, valid_BT: Tensor | None
    ) -> Tensor:
        token_BTW = self.project_in(frame_BTC)
        batch, num_memory = token_BTW.shape[0], self.memory_tokens.shape[0]
        memory_BNW = self.memory_tokens.to(token_BTW.dtype).expand(batch, -1, -1)
        token_BNW = torch.cat([memory_BNW, token_BTW], dim=1)
        valid_BN = None if valid_BT is None else F.pad(valid_BT, (num_memory, 0), value=True)
        modulation_B1O = self.global_cond_embedder(global_BW)[:, None]
        rotary = self.rotary_pos_emb(token_BNW.shape[1])
        blocks = cast(list[TransformerBlock], list(self.layers))
        cross_key_values = self.apply_each([block.cross_attn.to_kv for block in blocks], context_BSW)
        local_conditions = self.apply_each([block.to_local_embed for block in blocks], local_BTE)
        # One view per block: autograd sums their gradients in one operation instead of one by one between the blocks.
        modulations = modulation_B1O.expand(len(blocks), -1, -1, -1).unbind()
        for block, *own in zip(blocks, cross_key_values, modulations, local_conditions, strict=True):
            token_BNW = self._run(block, token_BNW, *own, rotary, valid_BN)
        return self.project_out(token_BNW[:, num_memory:])

    def _run(self, layer: nn.Module, *inputs: Any) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self.run_block, layer, *inputs, use_reentrant=False, **self.checkpoint_options)
        return self.run_block(layer, *inputs)


class DiffusionTransformer(nn.Module):
    """Predicts the velocity of rectified flow. Tensor names and their order are those of the published checkpoints."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.num_timestep_features = config.timestep_features
        self.to_timestep_embed = mlp(config.timestep_features, width, width)
        self.to_cond_embed = mlp(config.context_width, width, width, bias=False)
        self.to_global_embed = mlp(config.global_width, width, width, bias=False)
        self.transformer = TokenTransformer(config)
        self.preprocess_conv = nn.Conv1d(config.latent_channels, config.latent_channels, 1, bias=False)
        self.postprocess_conv = nn.Conv1d(config.latent_channels, config.latent_channels, 1, bias=False)

    def timestep_embedding(self, timestep_B: Tensor) -> Tensor:
        """(B, W). `timestep_B` is in the network's dtype: published models were trained with it rounded to that."""
        return self.to_timestep_embed(fourier_features(timestep_B, self.num_timestep_features))

    def forward(
        self,
        noised_BCT: Tensor,
        timestep_B: Tensor,
        conditioning: Conditioning,
        local_BET: Tensor,
        padding_mask_BT: Tensor | None,
    ) -> Tensor:
        """(B, C, T) velocity; all floating-point inputs must be in the network's dtype."""
        global_BW = self.to_global_embed(conditioning.global_BE) + self.timestep_embedding(timestep_B)
        context_BSW = self.to_cond_embed(conditioning.context_BSE)
        frame_BCT = noised_BCT + self.preprocess_conv(noised_BCT)
        local_BTE, frame_BTC = local_BET.transpose(1, 2), frame_BCT.transpose(1, 2)
        out_BTC = self.transformer(frame_BTC, context_BSW, global_BW, local_BTE, padding_mask_BT)
        out_BCT = out_BTC.transpose(1, 2)
        return out_BCT + self.postprocess_conv(out_BCT)


class Denoiser(nn.Module):
    """The diffusion transformer with inputs of any dtype: they are cast to its own, which the output has as well.

    Parameter names start with `model.`, as in published adapter files.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        sizes = transformer_config(config)
        self.latent_channels = sizes.latent_channels
        self.model = DiffusionTransformer(sizes)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the frozen weights, read from a tensor that no adapter replaces."""
        return self.model.transformer.memory_tokens.dtype

    def forward(
        self,
        noised_BCT: Tensor,
        timestep_B: Tensor,
        conditioning: Conditioning,
        inpaint_mask_B1T: Tensor | None = None,
        masked_latents_BCT: Tensor | None = None,
        padding_mask_BT: Tensor | None = None,
        dropped_B: Tensor | None = None,
    ) -> Tensor:
        """The predicted velocity noise - data, (B, C, T), where x_t = (1 - t) data + t noise.

        Source: rectified flow, Liu et al. 2022, arXiv:2209.03003, with time reversed: t = 1 is noise.

        Args:
            timestep_B: float32 in [0, 1], 1 = noise.
            inpaint_mask_B1T: 1 where the latent is given, 0 where it is to be generated; None = nothing is given.
            masked_latents_BCT: latents times that mask.
            padding_mask_BT: bool, True = valid frame; padding cannot influence valid frames. None = all valid.
            dropped_B: bool, True = this clip's context (prompt and duration token) is zeroed, as training for
                classifier-free guidance needs.

        Raises:
            ValueError: only one of `inpaint_mask_B1T` and `masked_latents_BCT` is given.
        """
        dtype = self.dtype
        context_BSE = conditioning.context_BSE.to(dtype)
        if dropped_B is not None:
            context_BSE = context_BSE.masked_fill(dropped_B[:, None, None], 0)
        cast = Conditioning(context_BSE, conditioning.global_BE.to(dtype))
        local_BET = self._local(noised_BCT, inpaint_mask_B1T, masked_latents_BCT)
        return self.model(noised_BCT.to(dtype), timestep_B.to(dtype), cast, local_BET, padding_mask_BT)

    def _local(self, like_BCT: Tensor, mask_B1T: Tensor | None, given_BCT: Tensor | None) -> Tensor:
        """The local condition, (B, E, T): inpaint mask, then given latents; zeros where nothing is given."""
        if (mask_B1T is None) != (given_BCT is None):
            raise ValueError("give the inpaint mask and the masked latents together, or neither")
        if mask_B1T is None or given_BCT is None:
            mask_B1T, given_BCT = torch.zeros_like(like_BCT[:, :1]), torch.zeros_like(like_BCT)
        return torch.cat([mask_B1T.to(self.dtype), given_BCT.to(self.dtype)], dim=1)
