"""The three published base models of Stable Audio 3. Light: facts only (hub repositories, lengths, sizes)."""

from __future__ import annotations

from stages.records import ModelSpec


def _base(name: str, max_samples: int, max_seconds: int) -> ModelSpec:
    return ModelSpec(
        name=f"{name}-base",
        inference_model=name,
        repo=f"stabilityai/stable-audio-3-{name}-base",
        sample_rate_hz=44_100,
        downsampling_ratio=4096,
        latent_channels=256,
        max_samples=max_samples,
        max_seconds=max_seconds,
    )


AUTOENCODERS = {"same-s": "stabilityai/SAME-S", "same-l": "stabilityai/SAME-L"}
"""Hub repositories of the autoencoders alone; each base model's file carries its own as well."""

MODELS = (
    _base("medium", 16_777_216, 380),
    _base("small-music", 5_324_800, 120),
    _base("small-sfx", 5_324_800, 120),
)
