"""The fields of a request, collected from the declarations of the stages' params. Light: imports no stage's run code.

A field is declared where it is used (`stages.field.param`); declared here are only those that no stage's params hold.
Flags, TOML recipes, validation, docs/fields.md and the JSON schema are made from `FIELDS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from stages import catalogue
from stages.contract import Resources
from stages.encode.stage import EncodeParams
from stages.field import Field, declared_fields, param
from stages.ingest.stage import LIMITS, IngestParams
from stages.train.stage import TrainParams

P = TypeVar("P")

DATA = Field(
    name="audio_data_url",
    kind="str",
    default=...,
    limits={"min_length": 1},
    rule="the path of a .zip or folder, or a URL: http(s)://, file://, data:application/zip;base64,",
    stage="ingest",
    hashed=True,
    help="a .zip or a folder of clips, each with a .txt caption beside it",
)
"""The only field that must be given; the positional argument on the command line."""

HOSTED = (
    *("model", "number_of_steps", "learning_rate", "rank", "adapter_type", "duration", "batch_size", "seed"),
    *("base_precision", "include", "exclude", "lora_checkpoint_url", "pre_encode"),
)
"""The hosted trainer's fields: its names and its order. All others are ours: optional, without effect when absent."""

_SHA256 = {"pattern": "(sha256:)?[0-9a-fA-F]{64}", "rule": "64 hex digits, as sha256sum prints them"}
PATHS = "Paths"


@dataclass(frozen=True, kw_only=True)
class RequestFields:
    """Declarations of fields that no stage's params hold: the model, and files by path or address."""

    model: str = param(
        "medium-base", choices=lambda: sorted(catalogue.models()), hashed=True, help="base checkpoint to fine-tune"
    )
    lora_checkpoint_url: str | None = param(
        None, rule="path or URL", stage="train", hashed=True, help="adapter to continue from, .safetensors or .ckpt"
    )
    audio_sha256: str | None = param(
        None,
        **_SHA256,
        stage="ingest",
        help="SHA-256 the zip must have; one that the store holds is not downloaded again",
    )
    lora_checkpoint_sha256: str | None = param(
        None, **_SHA256, stage="train", help="SHA-256 the adapter to continue from must have"
    )
    weights: str | None = param(None, section=PATHS, help="checkpoint folder; unset: SA3_WEIGHTS, then the hub")
    store: str = param("artifacts", section=PATHS, help="folder of finished artifacts and latents")
    output: str = param("output", section=PATHS, help="folder the adapter and its config are copied to")
    name: str | None = param(
        None,
        pattern=r"[^/\\]*",
        rule="a name, not a path",
        section=PATHS,
        help="name of the output files; unset: that of the data",
    )
    overwrite: bool = param(
        False,
        section=PATHS,
        help="replace the output files of another training; off: a free name is taken, such as NAME-2",
    )


@dataclass(frozen=True, kw_only=True)
class Declarations:
    """A dataclass that declares fields, and the attributes its fields have unless they declare others."""

    params: type
    stage: str
    section: str
    hashed: bool


CHECKSUMS, RESOURCES = "Checksums of the inputs", "Resources"
DECLARATIONS = (
    Declarations(params=RequestFields, stage="", section=CHECKSUMS, hashed=False),
    Declarations(params=IngestParams, stage="ingest", section="Captions and audio", hashed=True),
    Declarations(params=TrainParams, stage="train", section="Training", hashed=True),
    Declarations(params=EncodeParams, stage="encode", section="Latents", hashed=True),
    Declarations(params=Resources, stage="", section=RESOURCES, hashed=False),
)
HOSTED_SECTION = "Fields of the hosted trainer"
SECTIONS = (*(HOSTED_SECTION, "Captions and audio", CHECKSUMS, "Training", "Latents", LIMITS, PATHS, RESOURCES),)
"""Headings of docs/fields.md, in the order of --help."""


def collected(declarations: Sequence[Declarations] = DECLARATIONS) -> tuple[Field, ...]:
    """Every field of the request that these dataclasses declare, in the order of --help."""
    found = [_completed(field, group) for group in declarations for field in declared_fields(group.params)]
    return tuple(sorted((field for field in found if field.help), key=_position))


def _completed(field: Field, group: Declarations) -> Field:
    """The field with the attributes that its dataclass gives it."""
    section = HOSTED_SECTION if field.name in HOSTED else field.section or group.section
    hashed = group.hashed if field.hashed is None else field.hashed
    return replace(field, stage=field.stage or group.stage, section=section, hashed=hashed)


def _position(field: Field) -> tuple[int, int]:
    return SECTIONS.index(field.section), HOSTED.index(field.name) if field.name in HOSTED else field.order


FIELDS = collected()
"""Every field but `DATA`."""

DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in FIELDS}


def params_of(kind: type[P], values: Mapping[str, Any], **given: Any) -> P:
    """A params dataclass filled from a request: a param takes the value of the field declared under its name.

    Args:
        values: the validated request, by field name.
        given: params that are not fields of the request.
    """
    by_attribute = {field.attribute: field for field in FIELDS}
    wanted = [by_attribute[one.name] for one in fields(kind) if one.name in by_attribute]  # type: ignore[arg-type]
    return kind(**{field.attribute: _param_value(field, values[field.name]) for field in wanted}, **given)


def _param_value(field: Field, value: Any) -> Any:
    return field.values.get(value, value) if field.kind == "choice" else value
