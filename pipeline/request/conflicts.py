"""Fields of a request that are right one by one and wrong together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import FieldError
from stages.adapters.kind import NONE, kind_named

OF_LATENTS = ("encode_precision", "latent_dtype", "latent_format")
"""Fields of latents that are stored: a training that encodes inside its loop stores none."""


def conflicts(values: Mapping[str, Any]) -> list[FieldError]:
    """One entry per field that another one rules out.

    Args:
        values: by field name; those that are wrong in themselves left out.
    """
    return [FieldError(loc=(name,), type="value_error", msg=why, input=values[name]) for name, why in _found(values)]


def without_latents(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[FieldError]:
    """One entry per field that could have no effect on a training, as it encodes inside its loop."""
    why = "has no effect on a training that encodes inside its loop: add --pre-encode, or leave it out"
    asked = [] if values.get("pre_encode", True) else [name for name in OF_LATENTS if name in values]
    given = [name for name in asked if values[name] != defaults[name]]
    return [FieldError(loc=(name,), type="without_effect", msg=why, input=values[name]) for name in given]


def _found(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, what is wrong with it)."""
    steps, warmup = values.get("number_of_steps"), values.get("warmup_steps")
    if steps is not None and warmup is not None and warmup >= steps:
        yield "warmup_steps", f"must be below number_of_steps, which is {steps}"
    clips = values.get("batch_size", 1)
    if values.get("frames_per_batch") is not None and clips != 1:
        yield "frames_per_batch", f"takes the place of batch_size, which is {clips}: give one of them"
    digest = values.get("lora_checkpoint_sha256")
    if digest and "lora_checkpoint_url" in values and not values["lora_checkpoint_url"]:
        yield "lora_checkpoint_sha256", "is of lora_checkpoint_url, which is not given"
    kind = values.get("adapter_type")
    if kind is not None and values.get("decay_magnitudes") is False and kind_named(kind).magnitude is NONE:
        yield (
            "decay_magnitudes",
            f"has no effect on {kind}, which has no magnitudes: leave it out, or take another kind",
        )
