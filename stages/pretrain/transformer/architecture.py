"""Shape of tiny-base's transformer, conditioner and text encoder, as config sections. Light: standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.pretrain.autoencoder.architecture import SAMPLE_RATE_HZ

MOST_SECONDS = 384
"""Upper end of the duration embedding, as published."""
TEXT_FOLDER = "t5gemma-b-b-ul2"

TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "padding_side": "right",
    "model_max_length": 1_000_000,
}
"""tokenizer_config.json of the text encoder's folder."""


@dataclass(frozen=True)
class TransformerShape:
    """Sizes of the three networks; what is not listed is as published."""

    latent_channels: int = 128
    width: int = 192
    depth: int = 6
    head_width: int = 64
    feed_forward: float = 3.0
    memory_tokens: int = 8
    text_width: int = 128
    """Width of the text encoder and of the conditioning."""
    text_depth: int = 2
    text_heads: int = 4
    vocabulary: int = 1000
    max_tokens: int = 64
    """Prompts are cut after so many tokens, and padded to them."""


def whole_config(shape: TransformerShape) -> dict[str, Any]:
    """A model_config.json with all but the autoencoder's section: enough to build denoiser and conditioner."""
    sections = {"conditioning": conditioning_config(shape), "diffusion": diffusion_config(shape)}
    return {
        "sample_rate": SAMPLE_RATE_HZ,
        "audio_channels": 2,
        "model": {**sections, "io_channels": shape.latent_channels},
    }


def conditioning_config(shape: TransformerShape) -> dict[str, Any]:
    """The section of prompt and duration."""
    prompt = {
        "repo_id": "tiny-base",
        "subfolder": TEXT_FOLDER,
        "max_length": shape.max_tokens,
        "padding_mode": "learned",
    }
    seconds = {"min_val": 0, "max_val": MOST_SECONDS, "fourier_features_type": "expo"}
    return {
        "configs": [
            {"id": "prompt", "type": "t5gemma", "config": prompt},
            {"id": "seconds_total", "type": "number", "config": seconds},
        ],
        "cond_dim": shape.text_width,
    }


def diffusion_config(shape: TransformerShape) -> dict[str, Any]:
    """The transformer's section, in the published layout."""
    return {
        "cross_attention_cond_ids": ["prompt", "seconds_total"],
        "global_cond_ids": ["seconds_total"],
        "local_add_cond_ids": ["inpaint_mask", "inpaint_masked_input"],
        "type": "dit",
        "diffusion_objective": "rectified_flow",
        "use_effective_length_for_schedule": True,
        "mask_padding_attention": True,
        "distribution_shift_options": {"type": "full", "min_length": 256, "max_length": 4096},
        "config": _transformer_options(shape),
    }


def _transformer_options(shape: TransformerShape) -> dict[str, Any]:
    return {
        "io_channels": shape.latent_channels,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.width // shape.head_width,
        "cond_token_dim": shape.text_width,
        "global_cond_dim": shape.text_width,
        "local_add_cond_dim": shape.latent_channels + 1,
        "global_cond_type": "adaLN",
        "timestep_features_type": "expo",
        "timestep_features_logsnr": False,
        "attn_kwargs": {"qk_norm": "rms", "differential": False},
        "norm_type": "rms_norm",
        "norm_kwargs": {"force_fp32": True},
        "ff_kwargs": {"mult": shape.feed_forward},
        "num_memory_tokens": shape.memory_tokens,
    }


def text_encoder_config(shape: TransformerShape) -> dict[str, Any]:
    """Arguments of transformers' T5GemmaConfig; of its two halves only the encoder is used."""
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "vocab_size": shape.vocabulary}
    attention = ("sliding_attention", "full_attention")
    half = {
        "attn_logit_softcapping": 50.0,
        "head_dim": shape.text_width // shape.text_heads,
        "hidden_size": shape.text_width,
        "intermediate_size": 2 * shape.text_width,
        "layer_types": [attention[number % 2] for number in range(shape.text_depth)],
        "num_attention_heads": shape.text_heads,
        "num_hidden_layers": shape.text_depth,
        "num_key_value_heads": shape.text_heads,
        "query_pre_attn_scalar": shape.text_width // shape.text_heads,
        "dropout_rate": 0.0,
        "attention_dropout": 0.0,
        **ids,
    }
    decoder = {**half, "is_decoder": True, "cross_attention_hidden_size": shape.text_width}
    return {"encoder": half, "decoder": decoder, "is_encoder_decoder": False, "tie_word_embeddings": True, **ids}
