"""Fields of a request that are right one by one and wrong together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import FieldError


def conflicts(values: Mapping[str, Any]) -> list[FieldError]:
    """One entry per field that another one rules out."""
    return [FieldError(loc=(name,), type="value_error", msg=why, input=values[name]) for name, why in _found(values)]


def _found(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, what is wrong with it)."""
    steps, warmup = values["number_of_steps"], values["warmup_steps"]
    if warmup >= steps:
        yield "warmup_steps", f"must be below number_of_steps, which is {steps}"
    if values["frames_per_batch"] is not None and values["batch_size"] != 1:
        yield "frames_per_batch", f"takes the place of batch_size, which is {values['batch_size']}: give one of them"
