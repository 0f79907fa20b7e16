"""Conflicts between fields that are each valid on their own. Light: standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import FieldError
from pipeline.request.fields import DEFAULTS, FIELDS
from stages.adapters.kind import kind_named
from stages.train.stage import conflicting_fields


def conflicts(values: Mapping[str, Any]) -> list[FieldError]:
    """One error per field whose value another field rules out.

    Args:
        values: by field name, without the fields that are invalid on their own.
    """
    found = _conflicting(values)
    return [FieldError(loc=(name,), type="value_error", msg=why, input=values[name]) for name, why in found]


def unused_latent_fields(values: Mapping[str, Any]) -> list[FieldError]:
    """One error per changed field of stage encode, where the training encodes inside its loop and stores no latents."""
    if values.get("pre_encode", True):
        return []
    why = "has no effect on a training that encodes inside its loop: add --pre-encode, or leave it out"
    names = sorted(field.name for field in FIELDS if field.stage == "encode")
    changed = [name for name in names if name in values and values[name] != DEFAULTS[name]]
    return [FieldError(loc=(name,), type="without_effect", msg=why, input=values[name]) for name in changed]


def _conflicting(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, error message) of every conflict."""
    yield from conflicting_fields(values)
    digest = values.get("lora_checkpoint_sha256")
    if digest and "lora_checkpoint_url" in values and not values["lora_checkpoint_url"]:
        yield "lora_checkpoint_sha256", "belongs to lora_checkpoint_url, which is not given"
    if values.get("caption"):
        for other in ("captions", "caption_template"):
            if values.get(other):
                yield "caption", f"is one caption for every clip, and {other} says otherwise: give one of them"
    kind = values.get("adapter_type")
    if kind is not None and values.get("decay_magnitudes") is False and not kind_named(kind).has_magnitude:
        yield (
            "decay_magnitudes",
            f"has no effect on {kind}, which has no magnitudes: leave it out, or take another kind",
        )
