"""tiny-base, the model that ships with the project: the published layout with few channels.

It goes through the same loader as any checkpoint folder. Its weights are random, generated from a seed into the store
on first use: the same bytes on every machine, from the raw output of a counter-based generator by exact arithmetic.

Light: standard library only at import; writing the folder needs numpy, torch and transformers.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cache.files.atomic_files import write_failure
from stages.models.library_logging import quiet_torchao
from stages.records import ModelSpec

VERSION = 1
"""Part of the folder's name; bump when the content of the folder changes."""

SEED = 20_260_101
LATENT_CHANNELS = 32
TEXT_WIDTH = 64
TEXT_FOLDER = "t5gemma-b-b-ul2"
MAX_TOKENS = 128

TENSOR_DIGESTS = {
    "model.safetensors": "fd6dbc8f3d11a4dcc47275b47810f3991017b623f1858ae0b25ed3f1e5423f57",
    f"{TEXT_FOLDER}/model.safetensors": "5b7f6043f6c324683543f493a27de5f958e9f605f3dbb23cd696c84b2b81e9d5",
}
"""What the made files of tensors are compared with, and their names in the folder."""

TEXT_FILES: dict[str, str | None] = {
    f"{TEXT_FOLDER}/config.json": None,
    f"{TEXT_FOLDER}/tokenizer.json": "sha256:d862548bd1d3949301c972a24c578e4fb89b6d9ac12b07e7cb6bf7ab9ef85913",
    f"{TEXT_FOLDER}/tokenizer_config.json": "sha256:8122958229956d2d8848282a1cb249bc03e5b565ad3116955ce6ee6a5caa71a3",
}
"""JSON files of the text encoder and their digests; what a library writes into the first depends on its version."""

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
        short_name="sa3-tiny",
    ),
)


def folder_name() -> str:
    """Name of the checkpoint folder of this version, in the store's `shared/weights`."""
    return f"tiny-base-v{VERSION}"


def make(folder: Path) -> None:
    """Write the checkpoint folder, atomically: written under another name, then renamed.

    Raises:
        WriteFailed: the disk is full, or the folder cannot be written to.
    """
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _write_files(aside)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise write_failure(folder, error) from error
    try:
        aside.replace(folder)
    except OSError:
        # Another process was first: its folder holds the same bytes.
        if not (folder / "model_config.json").is_file():
            raise
        shutil.rmtree(aside)


def _write_files(folder: Path) -> None:
    (folder / TEXT_FOLDER).mkdir(parents=True)
    (folder / "model_config.json").write_text(json.dumps(model_config(MODELS[0].name), indent=1), encoding="utf-8")
    _write_networks(folder / "model.safetensors")
    _write_text_encoder(folder / TEXT_FOLDER)


def model_config(model: str) -> dict[str, Any]:
    """The model_config.json of tiny-base: the published layout, with few channels."""
    assert model == MODELS[0].name, "the only model of this family"
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
    """Token ids of special tokens, every byte, and the printable ASCII characters (a space is U+2581)."""
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
    from safetensors.torch import save

    quiet_torchao()
    from transformers import T5GemmaConfig, T5GemmaEncoderModel

    config = T5GemmaConfig(**_text_encoder_config())
    config.is_encoder_decoder = False
    shapes = {name: tuple(tensor.shape) for name, tensor in T5GemmaEncoderModel(config).state_dict().items()}
    # A full disk is an OSError here; of save_file it would be a SafetensorError.
    (folder / "model.safetensors").write_bytes(save(_random_tensors(shapes), metadata={"format": "pt"}))
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
    import torch
    from safetensors.torch import save

    from stages.models.load_weights import NETWORKS

    config = model_config(MODELS[0].name)
    with torch.device("meta"):
        networks = {prefix: build(config) for prefix, build in NETWORKS.items()}
    shapes = {
        prefix + name: tuple(tensor.shape)
        for prefix, network in networks.items()
        for name, tensor in network.state_dict().items()
    }
    file.write_bytes(save(_random_tensors(shapes), metadata={"format": "pt"}))


def _random_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(_values(name, shape)) for name, shape in shapes.items()}


def _values(name: str, shape: tuple[int, ...]) -> Any:
    """Initial values of one tensor: gains 1, shifts 0, matrices by fan-in, with the exceptions listed below."""
    import numpy as np

    if name.endswith("inv_freq"):
        return np.power(10_000.0, -np.arange(shape[0], dtype=np.float64) / shape[0]).astype(np.float32)
    constant = _listed(_CONSTANT, name)
    if constant is not None:
        return np.full(shape, constant, dtype=np.float32)
    gain = _listed(_GAIN, name)
    return _uniform(name, shape) * np.float32((1.0 if gain is None else gain) * _bound(shape))


def _listed(table: Mapping[str, float], name: str) -> float | None:
    return next((value for pattern, value in table.items() if fnmatchcase(name, pattern)), None)


_CONSTANT = {
    "*bottleneck.scaling_factor": 10.0,
    "*bottleneck.bias": 0.0,
    "*bottleneck.noise_scaling_factor": 1.0,
    "*bottleneck.running_std": 1.0,
    "*mapping.weight_g": 20.0,
    "pretransform.*[qk]_norm.gamma": 5.0,
    "*norm.alpha": 0.5,
    "*norm.gamma": 1.0,
    "*norm.beta": 0.0,
    "*norm.weight": 0.0,
    "*.bias": 0.0,
}
"""Constant tensors; the first matching pattern counts. The text encoder's RMS gains are stored minus one, hence zero.

Large attention gains and mapping norms of the autoencoder let the audio, not the learned token, decide its latents; its
scaling factor gives the example's latents about unit variance, as a trained soft-norm does.
"""

_GAIN = {
    "*new_tokens": 0.01,
    "*embed_tokens.weight": 8.0,
    "*memory_tokens": 1.0,
    "pretransform.*to_out.weight": 3.0,
    "*to_out.weight": 0.5,
    "*ff.ff.2.weight": 0.5,
    "*global_cond_embedder.2.weight": 0.5,
    "*to_local_embed.2.weight": 0.5,
    "*process_conv.weight": 0.5,
    "*project_out.weight": 0.5,
}
"""Factors on the standard deviation of random tensors, which is otherwise fan-in ** -0.5."""


def _bound(shape: tuple[int, ...]) -> float:
    """Bound of a uniform distribution of variance 1 / fan-in, the product of all dimensions but the first."""
    fan_in = 1
    for size in shape[1:]:
        fan_in *= size
    return float((3.0 / fan_in) ** 0.5)


def _uniform(name: str, shape: tuple[int, ...]) -> Any:
    """Values in [-1, 1) from a counter-based generator keyed by the tensor's name: exact on every machine."""
    import numpy as np

    count = int(np.prod(shape))
    words = np.random.Philox(key=SEED + (zlib.crc32(name.encode()) << 32)).random_raw((count + 1) // 2)
    halves = np.atleast_1d(words).astype("<u8").view("<u4")[:count]
    return ((halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)).reshape(shape)
