"""What decides the latents. Light: standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from cache.fingerprint import fingerprint
from cache.shards import formats
from stages.contract import Stage

SILENCE_FRAMES = 64
"""Frames of encoded silence kept; beyond its first frames silence repeats itself, so any length follows from these."""


@dataclass(frozen=True, kw_only=True)
class EncodeParams:
    """All of it is hashed."""

    model: str
    latent_format: str = "parquet"
    latent_dtype: str = "float16"
    """Storage precision of the latents: `float16` or `float32`."""
    compute_dtype: str = "float32"
    """Precision of the autoencoder while encoding: `float32`, `bfloat16` or `float16`."""
    encoder_noise: bool = False
    """Draw the encoder's new-token noise (seeded by the clip's key). Off: latents do not depend on chance."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("latent_format", tuple(formats())),
            ("latent_dtype", ("float16", "float32")),
            ("compute_dtype", ("float32", "bfloat16", "float16")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"encode.{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")


STAGE = Stage(
    name="encode",
    version=1,
    params=EncodeParams,
    inputs=("ingest",),
    entry="stages.encode.run:encode",
    components=("autoencoder", "text_encoder"),
)


def item_key(digest: str, crop_start: int, audio_params: object, params: EncodeParams, autoencoder: str) -> str:
    """Name of one clip's latents: whatever dataset, caption, duration or training it is part of.

    The container format is left out: it changes where latents lie, not what they are. So is the model's name:
    two models that share an autoencoder share latents.
    """
    decides = {name: value for name, value in asdict(params).items() if name not in ("latent_format", "model")}
    record = {
        "version": STAGE.version,
        "source": digest,
        "crop_start": crop_start,
        "audio": audio_params,
        "encode": decides,
        "autoencoder": autoencoder,
    }
    return fingerprint("latents", record)


def silence_key(params: EncodeParams, autoencoder: str) -> str:
    """Name of the latents of silence."""
    return item_key("silence", 0, {"frames": SILENCE_FRAMES}, params, autoencoder)


def prompt_key(prompt: str, text_encoder: str, max_length: int) -> str:
    """Name of one prompt's hidden states."""
    record = {"version": STAGE.version, "prompt": prompt, "text_encoder": text_encoder, "max_length": max_length}
    return fingerprint("prompt", record)
