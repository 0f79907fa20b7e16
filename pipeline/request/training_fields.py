"""Fields of a request that are ours: optional, and without effect when absent."""

from __future__ import annotations

import re

from pipeline.request.field import Field
from stages.ingest.caption_template import template_fault
from stages.ingest.source.limits import ArchiveLimits
from stages.ingest.stage import LONG_CLIPS, RESAMPLERS
from stages.train.stage import MOST_ACCUMULATED, MOST_FRAMES, OPTIMIZERS, QUANTIZATIONS, SCHEDULES


def sha256_fault(text: str) -> str | None:
    """What is wrong with a digest, or None."""
    return (
        None if re.fullmatch(r"(sha256:)?[0-9a-fA-F]{64}", text) else "must be 64 hex digits, as sha256sum prints them"
    )


def _latent_formats() -> list[str]:
    from cache.shards import formats

    return formats()


OPTIONS = (
    Field(
        name="trigger_phrase",
        kind="str",
        default=None,
        nullable=True,
        help="words put before every caption",
    ),
    Field(
        name="caption_template",
        kind="str",
        default=None,
        nullable=True,
        check=template_fault,
        help='make captions, such as "{genre}, {bpm} BPM", of each clip\'s .json or tags; {caption} is its .txt',
    ),
    Field(
        name="long_clips",
        kind="choice",
        default="first",
        choices=lambda: list(LONG_CLIPS),
        help="recordings beyond the native length: the first window, or one clip per window",
    ),
    Field(
        name="resampler",
        kind="choice",
        default="resampy",
        choices=lambda: list(RESAMPLERS),
        help="what changes sample rates; soxr is an optional package",
    ),
    Field(
        name="audio_sha256",
        kind="str",
        default=None,
        nullable=True,
        where="place",
        check=lambda text: sha256_fault(text),
        help="what the zip must be; one that the store holds is not asked for again",
    ),
    Field(
        name="lora_checkpoint_sha256",
        kind="str",
        default=None,
        nullable=True,
        where="place",
        check=lambda text: sha256_fault(text),
        help="what the adapter to continue from must be",
    ),
    Field(
        name="alpha",
        kind="float",
        default=None,
        nullable=True,
        limits={"gt": 0},
        help="adapter alpha; unset: the rank",
    ),
    Field(
        name="adapter_dropout",
        kind="float",
        default=0.0,
        limits={"ge": 0, "lt": 1},
        help="dropout inside the adapter",
    ),
    Field(
        name="weight_decay",
        kind="float",
        default=0.01,
        limits={"ge": 0},
        help="weight decay, decoupled from the gradient",
    ),
    Field(
        name="decay_magnitudes",
        kind="bool",
        default=True,
        help="let weight decay pull on magnitudes too",
    ),
    Field(
        name="optimizer",
        kind="choice",
        default="adamw",
        choices=lambda: list(OPTIMIZERS),
        help="adamw, or of the extra optimizers: lion; prodigy, whose own rate is multiplied by learning_rate / 0.0001",
    ),
    Field(
        name="schedule",
        kind="choice",
        default="constant",
        choices=lambda: list(SCHEDULES),
        help="learning rate after the warm-up",
    ),
    Field(
        name="warmup_steps",
        kind="int",
        default=0,
        limits={"ge": 0},
        help="steps in which the learning rate rises to its full value",
    ),
    Field(
        name="gradient_accumulation",
        kind="int",
        default=1,
        limits={"ge": 1, "le": MOST_ACCUMULATED},
        help="batches added up in one step: as one batch that many times as large",
    ),
    Field(
        name="gradient_clip",
        kind="float",
        default=None,
        nullable=True,
        limits={"gt": 0},
        help="largest norm of the gradient; unset: not clipped",
    ),
    Field(
        name="ema_decay",
        kind="float",
        default=None,
        nullable=True,
        limits={"gt": 0, "lt": 1},
        help="average the adapter over steps, such as 0.999, and export that beside it",
    ),
    Field(
        name="frames_per_batch",
        kind="int",
        default=None,
        nullable=True,
        limits={"ge": 1, "le": MOST_FRAMES},
        help="most latent frames in a batch, as many clips as fit; in place of batch_size",
    ),
    Field(
        name="crops_per_clip",
        kind="int",
        default=1,
        limits={"ge": 1},
        help="visits per epoch to a clip longer than the window, each cropped elsewhere",
    ),
    Field(
        name="crop_seconds",
        kind="bool",
        default=False,
        help="tell the model the length of the excerpt, not of the whole recording",
    ),
    Field(
        name="deterministic",
        kind="bool",
        default=True,
        help="the same bits every time; off may be faster on CUDA for models without differential attention",
    ),
    Field(
        name="base_quantization",
        kind="choice",
        default="none",
        choices=lambda: list(QUANTIZATIONS),
        help="store the frozen matrices in 8 bits; needs the optional extra quantization",
    ),
    Field(
        name="export_precision",
        kind="choice",
        default="fp16",
        choices=lambda: ["fp16", "fp32"],
        help="precision of the adapter file in the output folder",
    ),
    Field(
        name="latent_format",
        kind="choice",
        default="parquet",
        choices=lambda: _latent_formats(),
        help="container of the latents",
    ),
    Field(
        name="latent_dtype",
        kind="choice",
        default="float16",
        choices=lambda: ["float16", "float32"],
        help="storage precision of the latents",
    ),
    Field(
        name="encode_precision",
        kind="choice",
        default="fp32",
        choices=lambda: ["bf16", "fp16", "fp32"],
        help="precision of the autoencoder while encoding",
    ),
    Field(name="max_clips", kind="int", default=2000, limits={"ge": 1}, help="most clips accepted"),
    Field(
        name="max_member_bytes",
        kind="int",
        default=ArchiveLimits.max_member_bytes,
        limits={"ge": 1},
        help="largest file accepted, unpacked",
    ),
    Field(
        name="max_total_bytes",
        kind="int",
        default=ArchiveLimits.max_total_bytes,
        limits={"ge": 1},
        help="largest dataset accepted, unpacked; also the largest download",
    ),
    Field(
        name="max_compression_ratio",
        kind="float",
        default=ArchiveLimits.max_compression_ratio,
        limits={"gt": 0},
        help="unpacked over packed size of one file of a zip, against bombs",
    ),
    Field(
        name="max_members",
        kind="int",
        default=ArchiveLimits.max_members,
        limits={"ge": 1},
        help="most files of any kind accepted",
    ),
    Field(
        name="skip_bad",
        kind="bool",
        default=False,
        help="go on without clips that have faults, and record them",
    ),
)
