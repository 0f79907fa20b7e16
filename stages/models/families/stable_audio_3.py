"""The three published base models of Stable Audio 3. Light: facts only (hub repositories, lengths, configurations)."""

from __future__ import annotations

from typing import Any

from stages.records import ModelSpec

SAMPLE_RATE_HZ = 44_100
DOWNSAMPLING_RATIO = 4096
LATENT_CHANNELS = 256
TEXT_WIDTH = 768


def _base(name: str, max_samples: int, max_seconds: int) -> ModelSpec:
    return ModelSpec(
        name=f"{name}-base",
        inference_model=name,
        repo=f"stabilityai/stable-audio-3-{name}-base",
        sample_rate_hz=SAMPLE_RATE_HZ,
        downsampling_ratio=DOWNSAMPLING_RATIO,
        latent_channels=LATENT_CHANNELS,
        max_samples=max_samples,
        max_seconds=max_seconds,
        short_name=f"sa3-{name.replace('small-', 'sm-')}",
    )


AUTOENCODERS = {"same-s": "stabilityai/SAME-S", "same-l": "stabilityai/SAME-L"}
"""Hub repositories of the autoencoders alone; each base model's file carries its own as well."""

MODELS = (
    _base("medium", 16_777_216, 380),
    _base("small-music", 5_324_800, 120),
    _base("small-sfx", 5_324_800, 120),
)


def model_config(model: str) -> dict[str, Any]:
    """The model_config.json as published, every option of it."""
    spec = next(spec for spec in MODELS if spec.name == model)
    medium = model == "medium-base"
    return {
        "model_type": "diffusion_cond_inpaint",
        "sample_size": spec.max_samples,
        "sample_rate": SAMPLE_RATE_HZ,
        "audio_channels": 2,
        "model": {
            "pretransform": {
                "type": "autoencoder",
                "iterate_batch": True,
                "chunked": True,
                "config": _autoencoder(*(_same_l() if medium else _same_s()), frozen=medium),
            },
            "conditioning": _conditioning(spec),
            "diffusion": _diffusion_medium() if medium else _diffusion_small(),
            "io_channels": LATENT_CHANNELS,
        },
    }


def _autoencoder(encoder: dict[str, Any], decoder: dict[str, Any], *, frozen: bool) -> dict[str, Any]:
    bottleneck = {"dim": LATENT_CHANNELS, "noise_augment_dim": 0, "noise_regularize": True, "auto_scale": True}
    return {
        "pretransform": {"type": "patched", "config": {"patch_size": 256, "channels": 2}},
        "encoder": encoder,
        "decoder": decoder,
        "bottleneck": {"type": "softnorm", "config": bottleneck | ({"freeze": True} if frozen else {})},
        "latent_dim": LATENT_CHANNELS,
        "downsampling_ratio": DOWNSAMPLING_RATIO,
        "io_channels": 2,
    }


def _same_l() -> tuple[dict[str, Any], dict[str, Any]]:
    """Encoder and decoder of SAME-L: sliding-window attention."""
    shared = _resampling(channels=256, depth=12) | {"sliding_window": [1, 1]}
    encoder = {"in_channels": 512, **shared, "checkpointing": True, "mask_noise": 0.001}
    decoder = {"out_channels": 512, **shared, "checkpointing": False, "sinusoidal_blocks": [8], "mask_noise": 0.1}
    side = {"type": "same", "requires_grad": False}
    return {**side, "config": encoder}, {**side, "config": decoder}


def _same_s() -> tuple[dict[str, Any], dict[str, Any]]:
    """Encoder and decoder of SAME-S: attention within chunks."""
    chunked = {"chunk_size": 32, "chunk_midpoint_shift": True}
    shared = _resampling(channels=128, depth=6) | chunked | {"mapping_style": "none", "use_flash": True}
    shared["checkpointing"] = False
    encoder = {"in_channels": 512, **shared, "conv_mapping": False, "mask_noise": 0.0}
    decoder = {"out_channels": 512, **shared, "conv_mapping": True, "mask_noise": 0.01}
    decoder |= {"sinusoidal_blocks": [0], "freeze_backbone": False}
    side = {"type": "taae_v2", "requires_grad": False}
    return {**side, "config": encoder}, {**side, "config": decoder}


def _resampling(channels: int, depth: int) -> dict[str, Any]:
    """Options that encoder and decoder share."""
    return {
        "channels": channels,
        "c_mults": [6],
        "strides": [16],
        "latent_dim": LATENT_CHANNELS,
        "transformer_depths": [depth],
        "differential": True,
        "dyt": True,
        "dim_heads": 64,
        "variable_stride": True,
    }


def _conditioning(spec: ModelSpec) -> dict[str, Any]:
    text_encoder = {"repo_id": spec.repo, "subfolder": "t5gemma-b-b-ul2", "max_length": 256, "padding_mode": "learned"}
    seconds = {"min_val": 0, "max_val": 384, "fourier_features_type": "expo"}
    return {
        "configs": [
            {"id": "prompt", "type": "t5gemma", "config": text_encoder},
            {"id": "seconds_total", "type": "number", "config": seconds},
        ],
        "cond_dim": TEXT_WIDTH,
    }


def _diffusion_medium() -> dict[str, Any]:
    sizes = {"embed_dim": 1536, "depth": 24, "num_heads": 24}
    return _diffusion(sizes, {}, {"min_length": 256, "max_length": 4096}, differential=True)


def _diffusion_small() -> dict[str, Any]:
    sizes = {"embed_dim": 1024, "depth": 20, "num_heads": 16}
    shift = {"type": "full", "min_length": 256, "max_length": 4096}
    return _diffusion(sizes, {"timestep_features_logsnr": False}, shift, differential=False)


def _diffusion(
    sizes: dict[str, Any], more: dict[str, Any], shift: dict[str, Any], *, differential: bool
) -> dict[str, Any]:
    return {
        "cross_attention_cond_ids": ["prompt", "seconds_total"],
        "global_cond_ids": ["seconds_total"],
        "local_add_cond_ids": ["inpaint_mask", "inpaint_masked_input"],
        "type": "dit",
        "diffusion_objective": "rectified_flow",
        "use_effective_length_for_schedule": True,
        "mask_padding_attention": True,
        "distribution_shift_options": shift,
        "config": {
            "io_channels": LATENT_CHANNELS,
            **sizes,
            "cond_token_dim": TEXT_WIDTH,
            "global_cond_dim": TEXT_WIDTH,
            "local_add_cond_dim": LATENT_CHANNELS + 1,
            "global_cond_type": "adaLN",
            "timestep_features_type": "expo",
            **more,
            "attn_kwargs": {"qk_norm": "rms", "differential": differential},
            "norm_type": "rms_norm",
            "norm_kwargs": {"force_fp32": True},
            "ff_kwargs": {"mult": 4.0},
            "num_memory_tokens": 64,
        },
    }
