"""Stage `encode`: its params, those of an import, and the keys of latents and prompts. Light: standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from cache.fingerprint import fingerprint
from cache.shards import formats
from stages.contract import Stage
from stages.field import check, param, same_param
from stages.precision import DTYPE_NAMES

SILENCE_FRAMES = 64
"""Frames of encoded silence that are stored; later frames repeat, so any length of silence follows from these."""


@dataclass(frozen=True, kw_only=True)
class EncodeParams:
    """Params of encode; all of them are hashed."""

    model: str
    latent_format: str = param("parquet", choices=formats, help="file format of the latents")
    latent_dtype: str = param("float16", choices=("float16", "float32"), help="storage precision of the latents")
    compute_dtype: str = param(
        "float32",
        name="encode_precision",
        choices=DTYPE_NAMES,
        help="precision of the autoencoder while encoding",
    )
    encoder_noise: bool = param(False)
    """Draw the encoder's new-token noise, seeded by the clip's key."""

    def __post_init__(self) -> None:
        check(self, "encode")


@dataclass(frozen=True, kw_only=True)
class ImportParams:
    """Params of importing a pre-encoded folder; all of them are hashed. Those without a default ingest declares."""

    model: str
    native_samples: int
    """The model's native length in samples: the window is at most that long."""
    latent_format: str = same_param(EncodeParams, "latent_format")
    latent_dtype: str = same_param(EncodeParams, "latent_dtype")
    duration_seconds: float | None
    """Length that clips are cropped or padded to when they are read; None: the longest clip of the folder."""
    max_clips: int
    skip_bad: bool
    """Continue without the clips that have faults; faults of the folder itself still end the run."""

    def __post_init__(self) -> None:
        check(self, "encode")


STAGE = Stage(
    name="encode",
    version=1,
    params=EncodeParams,
    inputs=("ingest",),
    entry="stages.encode.run:encode",
    components=("autoencoder", "text_encoder"),
)

IMPORT = Stage(
    name="encode",
    version=1,
    params=ImportParams,
    inputs=(),
    entry="stages.encode.pre_encoded.importing:import_folder",
    components=("autoencoder", "text_encoder"),
)
"""Makes the same kind of artifact from a folder of the reference's pre-encoding tool instead of prepared audio."""


def item_key(digest: str, crop_start: int, audio_params: object, params: EncodeParams, autoencoder: str) -> str:
    """Fingerprint of one clip's latents, independent of dataset, caption, duration and training.

    The shard format is left out because it does not change the latents; the model's name because two models with the
    same autoencoder share latents.
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
    """Fingerprint of the latents of silence."""
    return item_key("silence", 0, {"frames": SILENCE_FRAMES}, params, autoencoder)


def imported_key(digest: str, latent_dtype: str) -> str:
    """Fingerprint of imported latents: of their values, because it is not known how they were made.

    Args:
        digest: digest of their shape and float32 values.
    """
    return fingerprint("imported latents", {"version": IMPORT.version, "values": digest, "latent_dtype": latent_dtype})


def prompt_key(prompt: str, text_encoder: str, max_length: int) -> str:
    """Fingerprint of one prompt's hidden states."""
    record = {"version": STAGE.version, "prompt": prompt, "text_encoder": text_encoder, "max_length": max_length}
    return fingerprint("prompt", record)
