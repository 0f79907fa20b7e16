"""JSON Schema of a request, for editors and clients. Light: standard library only.

    python -m pipeline.request.json_schema > request.schema.json

It describes typed documents (TOML, JSON). Text as flags give it ("16", "on", "" for unset) is converted before
validation and is not part of it, nor are rules between fields and caption templates: those only the validator knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.request.fields import DATA, FIELDS
from stages.field import Field

_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string", "choice": "string"}
_KEYWORDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "min_length": "minLength",
}


def request_schema(fields: Sequence[Field] = FIELDS) -> dict[str, Any]:
    """The schema (draft 2020-12): types, ranges, choices, defaults and descriptions of all fields."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "stable-audio-3-trainer request",
        "type": "object",
        "properties": {field.name: _property(field) for field in (DATA, *fields)},
        "required": [DATA.name],
        "additionalProperties": False,
    }


def _property(field: Field) -> dict[str, Any]:
    schema = _names() if field.kind == "names" else _value(field)
    default = {} if field.default is ... else {"default": field.default}
    return {"description": field.help, **schema, **default}


def _value(field: Field) -> dict[str, Any]:
    """One value; fields that may be unset also accept null."""
    type = _TYPES[field.kind]
    schema: dict[str, Any] = {"type": [type, "null"] if field.nullable else type}
    if field.kind == "choice":
        schema["enum"] = [*field.values, *([None] if field.nullable else [])]
    if field.pattern is not None:
        schema["pattern"] = f"^(?:{field.pattern})$"
    return schema | {_KEYWORDS[word]: bound for word, bound in field.limits.items()}


def _names() -> Mapping[str, Any]:
    return {"anyOf": [{"type": "null"}, {"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


if __name__ == "__main__":
    print(json.dumps(request_schema(), indent=2, ensure_ascii=False))
