"""Every field of a request, once: the flags, the recipe TOML and the validation are all made from this table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stages import catalogue
from stages.ingest.limits import ArchiveLimits
from stages.ingest.stage import LONG_CLIPS, RESAMPLERS
from stages.ingest.template import template_fault


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of the request."""

    name: str
    kind: str
    """`int`, `float`, `bool`, `str`, `names` (a list, or one comma or space separated string) or `choice`."""
    default: Any
    help: str
    limits: Mapping[str, Any] = field(default_factory=dict)
    """pydantic's words: ge, gt, le, lt."""
    choices: Callable[[], list[str]] | None = None
    nullable: bool = False
    hosted: bool = True
    """One of the hosted trainer's fields; ours otherwise."""
    check: Callable[[str], str | None] | None = None
    """Says what is wrong with a text, or None."""
    where: str = "request"
    """`request`: changes the result. `place`: where things lie. `resource`: how fast."""


DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")

BASE_PRECISIONS = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
    "fp32": "fp32",
    "float32": "fp32",
}
"""Spellings of the base precision, and the one each is recorded as."""

REQUEST = (
    Field(
        name="model",
        kind="choice",
        default="medium-base",
        choices=lambda: sorted(catalogue.models()),
        help="base checkpoint to fine-tune",
    ),
    Field(name="number_of_steps", kind="int", default=1000, limits={"ge": 1, "le": 20_000}, help="optimiser steps"),
    Field(
        name="learning_rate",
        kind="float",
        default=1e-4,
        limits={"gt": 0, "le": 0.01},
        help="AdamW rate of the adapter's parameters",
    ),
    Field(
        name="rank",
        kind="int",
        default=16,
        limits={"ge": 1, "le": 256},
        help="adapter rank; -xs kinds: at most the smallest layer dimension",
    ),
    Field(
        name="adapter_type", kind="choice", default="dora-rows", choices=catalogue.adapter_kinds, help="adapter kind"
    ),
    Field(
        name="duration",
        kind="float",
        default=None,
        nullable=True,
        limits={"ge": 1, "le": 380},
        help="crop/pad length in seconds; unset: the longest clip, capped at the model's native length",
    ),
    Field(name="batch_size", kind="int", default=1, limits={"ge": 1, "le": 8}, help="clips per step"),
    Field(
        name="seed",
        kind="int",
        default=42,
        limits={"ge": 0, "le": 2_147_483_647},
        help="same seed and inputs, same adapter",
    ),
    Field(
        name="base_precision",
        kind="choice",
        default="bf16",
        choices=lambda: list(BASE_PRECISIONS),
        help="precision of the frozen base; the adapter stays fp32",
    ),
    Field(
        name="include",
        kind="names",
        default=None,
        nullable=True,
        help="adapt only modules whose name contains one of these; [a-b] ranges",
    ),
    Field(
        name="exclude",
        kind="names",
        default=None,
        nullable=True,
        help="skip modules whose name contains one of these; [a-b] ranges",
    ),
    Field(
        name="lora_checkpoint_url",
        kind="str",
        default=None,
        nullable=True,
        help="adapter .safetensors to continue from",
    ),
    Field(
        name="pre_encode",
        kind="bool",
        default=False,
        help="train from cached latents instead of encoding inside the loop",
    ),
)

OURS = (
    Field(
        name="trigger_phrase",
        kind="str",
        default=None,
        nullable=True,
        hosted=False,
        help="words put before every caption",
    ),
    Field(
        name="caption_template",
        kind="str",
        default=None,
        nullable=True,
        hosted=False,
        check=template_fault,
        help='make captions, such as "{genre}, {bpm} BPM", of each clip\'s .json or tags; {caption} is its .txt',
    ),
    Field(
        name="long_clips",
        kind="choice",
        default="first",
        choices=lambda: list(LONG_CLIPS),
        hosted=False,
        help="recordings beyond the native length: the first window, or one clip per window",
    ),
    Field(
        name="resampler",
        kind="choice",
        default="resampy",
        choices=lambda: list(RESAMPLERS),
        hosted=False,
        help="what changes sample rates; soxr is an optional package",
    ),
    Field(
        name="audio_sha256",
        kind="str",
        default=None,
        nullable=True,
        hosted=False,
        where="place",
        check=lambda text: sha256_fault(text),
        help="what the zip must be; one that the store holds is not asked for again",
    ),
    Field(
        name="lora_checkpoint_sha256",
        kind="str",
        default=None,
        nullable=True,
        hosted=False,
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
        hosted=False,
        help="adapter alpha; unset: the rank",
    ),
    Field(
        name="adapter_dropout",
        kind="float",
        default=0.0,
        limits={"ge": 0, "lt": 1},
        hosted=False,
        help="dropout inside the adapter",
    ),
    Field(name="weight_decay", kind="float", default=0.01, limits={"ge": 0}, hosted=False, help="AdamW weight decay"),
    Field(
        name="export_precision",
        kind="choice",
        default="fp16",
        choices=lambda: ["fp16", "fp32"],
        hosted=False,
        help="precision of the adapter file in the output folder",
    ),
    Field(
        name="latent_format",
        kind="choice",
        default="parquet",
        choices=lambda: _latent_formats(),
        hosted=False,
        help="container of the latents",
    ),
    Field(
        name="latent_dtype",
        kind="choice",
        default="float16",
        choices=lambda: ["float16", "float32"],
        hosted=False,
        help="storage precision of the latents",
    ),
    Field(
        name="encode_precision",
        kind="choice",
        default="fp32",
        choices=lambda: ["bf16", "fp16", "fp32"],
        hosted=False,
        help="precision of the autoencoder while encoding",
    ),
    Field(name="max_clips", kind="int", default=2000, limits={"ge": 1}, hosted=False, help="most clips accepted"),
    Field(
        name="max_member_bytes",
        kind="int",
        default=ArchiveLimits.max_member_bytes,
        limits={"ge": 1},
        hosted=False,
        help="largest file accepted, unpacked",
    ),
    Field(
        name="max_total_bytes",
        kind="int",
        default=ArchiveLimits.max_total_bytes,
        limits={"ge": 1},
        hosted=False,
        help="largest dataset accepted, unpacked; also the largest download",
    ),
    Field(
        name="max_compression_ratio",
        kind="float",
        default=ArchiveLimits.max_compression_ratio,
        limits={"gt": 0},
        hosted=False,
        help="unpacked over packed size of one file of a zip, against bombs",
    ),
    Field(
        name="max_members",
        kind="int",
        default=ArchiveLimits.max_members,
        limits={"ge": 1},
        hosted=False,
        help="most files of any kind accepted",
    ),
    Field(
        name="skip_bad",
        kind="bool",
        default=False,
        hosted=False,
        help="go on without clips that have faults, and record them",
    ),
)

PLACES = (
    Field(
        name="weights",
        kind="str",
        default=None,
        nullable=True,
        hosted=False,
        where="place",
        help="checkpoint folder; or SA3_WEIGHTS",
    ),
    Field(
        name="store",
        kind="str",
        default="artifacts",
        hosted=False,
        where="place",
        help="folder of finished artifacts and latents",
    ),
    Field(
        name="output",
        kind="str",
        default="output",
        hosted=False,
        where="place",
        help="folder the adapter and its config are copied to",
    ),
    Field(
        name="name",
        kind="str",
        default=None,
        nullable=True,
        check=lambda text: "must be a name, not a path" if re.search(r"[/\\]", text) else None,
        hosted=False,
        where="place",
        help="name of the output files; unset: the data's",
    ),
)

RESOURCES = (
    Field(
        name="device",
        kind="str",
        default="auto",
        check=lambda text: None if DEVICE.fullmatch(text) else "must be auto, cpu, cuda, cuda:1 and so on, or mps",
        hosted=False,
        where="resource",
        help="auto, cpu, cuda, cuda:1 or mps",
    ),
    Field(
        name="workers",
        kind="int",
        default=0,
        limits={"ge": 0},
        hosted=False,
        where="resource",
        help="ingest processes; 0: one per core",
    ),
    Field(
        name="threads",
        kind="int",
        default=0,
        limits={"ge": 0},
        hosted=False,
        where="resource",
        help="CPU threads of torch; 0: its own choice",
    ),
    Field(
        name="checkpoint_every",
        kind="int",
        default=500,
        limits={"ge": 1},
        hosted=False,
        where="resource",
        help="steps between checkpoints; the last step is always saved",
    ),
    Field(
        name="keep_checkpoints",
        kind="int",
        default=2,
        limits={"ge": 1},
        hosted=False,
        where="resource",
        help="checkpoints kept while training",
    ),
    Field(
        name="log_every",
        kind="int",
        default=50,
        limits={"ge": 1},
        hosted=False,
        where="resource",
        help="steps between progress lines",
    ),
    Field(
        name="engine",
        kind="choice",
        default="loky",
        choices=lambda: ["loky", "threading", "dask", "ray"],
        hosted=False,
        where="resource",
        help="joblib backend of ingest",
    ),
)

FIELDS = (*REQUEST, *OURS, *PLACES, *RESOURCES)


def sha256_fault(text: str) -> str | None:
    """What is wrong with a digest, or None."""
    return (
        None if re.fullmatch(r"(sha256:)?[0-9a-fA-F]{64}", text) else "must be 64 hex digits, as sha256sum prints them"
    )


def _latent_formats() -> list[str]:
    from cache.shards import formats

    return formats()
