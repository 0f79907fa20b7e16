"""tiny-base: the embedded default, in the published layout with few channels.

It goes through the same loader as any checkpoint folder. Its weights are random, made from a seed into the store on
first use: the same on every machine, since they come from a counter-based generator's raw words by exact arithmetic.
Light at import; making the folder needs numpy, torch and transformers.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.records import ModelSpec

VERSION = 1
"""Bump when the folder made below changes; it names the folder."""

SEED = 20_260_101
LATENT_CHANNELS = 32
TEXT_WIDTH = 64
TEXT_FOLDER = "t5gemma-b-b-ul2"
MAX_TOKENS = 128

MODELS = (
    ModelSpec(
        name="tiny-base",
        inference_model="tiny",
        repo=None,
        sample_rate_hz=44_100,
        downsampling_ratio=4096,
        latent_channels=LATENT_CHANNELS,
        max_samples=5_324_800,
        max_seconds=120,
    ),
)


def folder_name() -> str:
    """Where in the store's shared weights this version lies."""
    return f"tiny-base-v{VERSION}"


def make(folder: Path) -> None:
    """Write the checkpoint folder; written aside and renamed, so a folder that exists is whole."""
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / TEXT_FOLDER).mkdir(parents=True)
    (aside / "model_config.json").write_text(json.dumps(model_config(), indent=1), encoding="utf-8")
    _write_networks(aside / "model.safetensors")
    _write_text_encoder(aside / TEXT_FOLDER)
    try:
        aside.replace(folder)
    except OSError:
        # Another process made it first: theirs holds the same bytes.
        if not (folder / "model_config.json").is_file():
            raise
        shutil.rmtree(aside)


def model_config() -> dict[str, Any]:
    """The published layout of model_config.json, with few channels."""
    return {
        "model_type": "diffusion_cond_inpaint",
        "sample_size": MODELS[0].max_samples,
        "sample_rate": MODELS[0].sample_rate_hz,
        "audio_channels": 2,
        "model": {
            "pretransform": {
                "type": "autoencoder",
                "iterate_batch": True,
                "chunked": True,
                "config": _autoencoder_config(),
            },
            "conditioning": _conditioning_config(),
            "diffusion": _diffusion_config(),
            "io_channels": LATENT_CHANNELS,
        },
    }


def _autoencoder_config() -> dict[str, Any]:
    shared = {
        "channels": 32,
        "c_mults": [2],
        "strides": [16],
        "latent_dim": LATENT_CHANNELS,
        "transformer_depths": [4],
        "differential": True,
        "dyt": True,
        "dim_heads": 32,
        "variable_stride": True,
        "chunk_size": 32,
        "chunk_midpoint_shift": True,
    }
    return {
        "pretransform": {"type": "patched", "config": {"patch_size": 256, "channels": 2}},
        "encoder": {
            "type": "taae_v2",
            "config": {"in_channels": 512, **shared, "conv_mapping": False, "mask_noise": 0.0},
        },
        "decoder": {
            "type": "taae_v2",
            "config": {
                "out_channels": 512,
                **shared,
                "sinusoidal_blocks": [0],
                "conv_mapping": True,
                "mask_noise": 0.01,
            },
        },
        "bottleneck": {
            "type": "softnorm",
            "config": {"dim": LATENT_CHANNELS, "noise_augment_dim": 0, "noise_regularize": True, "auto_scale": True},
        },
        "latent_dim": LATENT_CHANNELS,
        "downsampling_ratio": 4096,
        "io_channels": 2,
    }


def _conditioning_config() -> dict[str, Any]:
    prompt = {"repo_id": "tiny-base", "subfolder": TEXT_FOLDER, "max_length": MAX_TOKENS, "padding_mode": "learned"}
    seconds = {"min_val": 0, "max_val": 384, "fourier_features_type": "expo"}
    return {
        "configs": [
            {"id": "prompt", "type": "t5gemma", "config": prompt},
            {"id": "seconds_total", "type": "number", "config": seconds},
        ],
        "cond_dim": TEXT_WIDTH,
    }


def _diffusion_config() -> dict[str, Any]:
    return {
        "cross_attention_cond_ids": ["prompt", "seconds_total"],
        "global_cond_ids": ["seconds_total"],
        "local_add_cond_ids": ["inpaint_mask", "inpaint_masked_input"],
        "type": "dit",
        "diffusion_objective": "rectified_flow",
        "use_effective_length_for_schedule": True,
        "mask_padding_attention": True,
        "distribution_shift_options": {"type": "full", "min_length": 256, "max_length": 4096},
        "config": {
            "io_channels": LATENT_CHANNELS,
            "embed_dim": 128,
            "depth": 3,
            "num_heads": 2,
            "cond_token_dim": TEXT_WIDTH,
            "global_cond_dim": TEXT_WIDTH,
            "local_add_cond_dim": LATENT_CHANNELS + 1,
            "global_cond_type": "adaLN",
            "timestep_features_type": "expo",
            "timestep_features_logsnr": False,
            "attn_kwargs": {"qk_norm": "rms", "differential": False},
            "norm_type": "rms_norm",
            "norm_kwargs": {"force_fp32": True},
            "ff_kwargs": {"mult": 4.0},
            "num_memory_tokens": 8,
        },
    }


def _text_encoder_config() -> dict[str, Any]:
    half = {
        "attn_logit_softcapping": 50.0,
        "head_dim": 32,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 128,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "query_pre_attn_scalar": 32,
        "vocab_size": len(_vocabulary()),
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "vocab_size": half["vocab_size"]}
    decoder = {**half, "is_decoder": True, "cross_attention_hidden_size": TEXT_WIDTH}
    return {"encoder": half, "decoder": decoder, "is_encoder_decoder": False, "tie_word_embeddings": True, **ids}


def _vocabulary() -> dict[str, int]:
    """Special tokens, every byte, and the printable ASCII characters (a space is U+2581)."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    characters = ["▁", *(chr(code) for code in range(33, 127))]
    return {
        token: index for index, token in enumerate([*special, *(f"<0x{byte:02X}>" for byte in range(256)), *characters])
    }


def _tokenizer() -> dict[str, Any]:
    """A character tokenizer with byte fallback, in the format of the tokenizers library."""
    vocabulary = _vocabulary()
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, index in vocabulary.items()
        if index < 4
    ]
    model = {
        "type": "BPE",
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": vocabulary,
        "merges": [],
    }
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": space,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _write_text_encoder(folder: Path) -> None:
    from safetensors.torch import save_file
    from transformers import T5GemmaConfig, T5GemmaEncoderModel

    config = T5GemmaConfig(**_text_encoder_config())
    config.is_encoder_decoder = False
    shapes = {name: tuple(tensor.shape) for name, tensor in T5GemmaEncoderModel(config).state_dict().items()}
    save_file(_random_tensors(shapes), folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures = ["T5GemmaEncoderModel"]
    config.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(), ensure_ascii=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "padding_side": "right",
        "model_max_length": 1_000_000,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _write_networks(file: Path) -> None:
    from safetensors.torch import save_file

    from stages.models._weights import published_shapes

    save_file(_random_tensors(published_shapes(model_config())), file, metadata={"format": "pt"})


def _random_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(_values(name, shape)) for name, shape in shapes.items()}


def _values(name: str, shape: tuple[int, ...]) -> Any:
    """One tensor's start: gains one, shifts zero, products scaled by their fan-in, branch outputs at half of that."""
    import numpy as np

    leaf = name.rsplit(".", 1)[-1]
    if leaf == "inv_freq":
        half = shape[0]
        return np.power(10_000.0, -np.arange(half, dtype=np.float64) / half).astype(np.float32)
    if (leaf in _CONSTANTS and "norm" in name) or name.endswith(_CONSTANT_NAMES):
        return np.full(shape, _constant(name, leaf), dtype=np.float32)
    return _uniform(name, shape) * np.float32(_bound(name, shape))


_CONSTANTS = {"alpha": 0.5, "gamma": 1.0, "beta": 0.0, "weight": 0.0}
"""Norms: DyT's slope, gains and shifts; the text encoder's RMS weights count from one, so they start at zero."""
_CONSTANT_NAMES = ("bottleneck.scaling_factor", "bottleneck.bias", "running_std", "noise_scaling_factor", "weight_g")


def _constant(name: str, leaf: str) -> float:
    if name.endswith(_CONSTANT_NAMES):
        return {
            "scaling_factor": LATENT_SCALE,
            "bias": 0.0,
            "running_std": 1.0,
            "noise_scaling_factor": 1.0,
            "weight_g": 3.0,
        }[leaf]
    return _CONSTANTS[leaf]


LATENT_SCALE = 1.0
"""Brings the example's latents to about unit variance, as softnorm's training does."""


def _bound(name: str, shape: tuple[int, ...]) -> float:
    """Half width of the uniform start: variance 1 / fan-in, less where a branch or a modulation joins."""
    if len(shape) == 1:
        return 0.05
    fan_in = max(1, int(shape[1]) * (int(shape[2]) if len(shape) > 2 else 1))
    bound: float = (3.0 / fan_in) ** 0.5
    if name.endswith(("embed_tokens.weight", "memory_tokens", "new_tokens")):
        return 1.0
    quiet = (
        "to_out.weight",
        "ff.ff.2.weight",
        "global_cond_embedder.2.weight",
        "to_local_embed.2.weight",
        "process_conv.weight",
    )
    return bound * 0.5 if name.endswith(quiet) else bound


def _uniform(name: str, shape: tuple[int, ...]) -> Any:
    """Values in [-1, 1) from a counter-based generator keyed by the tensor's name: exact on every machine."""
    import numpy as np

    count = int(np.prod(shape))
    words = np.random.Philox(key=SEED + (zlib.crc32(name.encode()) << 32)).random_raw((count + 1) // 2)
    halves = np.atleast_1d(words).astype("<u8").view("<u4")[:count]
    return ((halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)).reshape(shape)
