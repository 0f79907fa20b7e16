"""A request's body, checked, as the task of a worker: a training, or a generation with its adapter.

Light: pydantic is imported on use.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import RecipeError
from pipeline.generate.request import playable_models
from pipeline.request.fields import DATA, FIELDS, PATHS, RESOURCES
from pipeline.request.recipe import read_recipe
from pipeline.serve.errors import entry, invalid
from pipeline.serve.sources import Found, Sources, WrongSource
from stages.field import Field
from stages.generate.settings import MAX_SEED
from stages.ingest.stage import LIMITS

if TYPE_CHECKING:
    from pydantic import BaseModel

TRAINER = "fal-ai/stable-audio-3-trainer"
PLAYER = "fal-ai/stable-audio-3"
TRAIN, GENERATE = "train", "generate"
_FILES = (DATA.name, "lora_checkpoint_url")
_MODELS = {"medium": "medium", "small/music": "small-music", "small/sfx": "small-sfx", "tiny": "tiny"}
_MOST_ADAPTERS = 3

TAKEN: tuple[Field, ...] = tuple(field for field in FIELDS if field.section not in (PATHS, RESOURCES, LIMITS))
"""Fields that a request may set: paths, resources and limits are the server's own."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A checked request."""

    kind: str
    task: dict[str, Any]
    input_digest: str
    notes: list[str]
    """For the log."""


def player_endpoints() -> dict[str, str]:
    """Model of each endpoint that generates, by its path behind `PLAYER`."""
    paths = {
        f"{name}{base}": f"{model}-base" if base else model
        for name, model in _MODELS.items()
        for base in ("", "/base")
        if (f"{model}-base" if base else model) in playable_models()
    }
    return {f"{path}/text-to-audio{tail}": model for path, model in paths.items() for tail in ("", "/lora")}


def request_digest(owner: str, path: str, body: bytes, webhook: str | None) -> str:
    """What a submit and its retries have in common."""
    content = hashlib.sha256(body).hexdigest()
    return hashlib.sha256(json.dumps([owner, path, content, webhook]).encode()).hexdigest()


def parsed_body(raw: bytes, base_url: str) -> dict[str, Any]:
    """The JSON object of a body; an empty body is an empty object. Raises: Refused."""
    try:
        body = json.loads(raw or b"{}", parse_constant=_no_constant)
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair cannot be written into a file
    except (ValueError, RecursionError) as error:
        wrong = {"loc": ["body"], "type": "json_invalid", "msg": f"is not valid JSON ({error})"[:300]}
        raise invalid([wrong], base_url) from error
    if not isinstance(body, dict):
        raise invalid([{"loc": ["body"], "type": "dict_type", "msg": "must be a JSON object"}], base_url)
    return body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def training(body: Mapping[str, Any], sources: Sources) -> Submission:
    """A training from the trainer's fields. Raises: Refused, with every wrong field."""
    given = {name: value for name, value in body.items() if value is not None}
    taken = {field.name for field in (DATA, *TAKEN)}
    notes = [_ignored(name, taken) for name in given if name not in taken]
    fields = {name: value for name, value in given.items() if name in taken}
    files, errors = _files(fields, sources)
    values = fields | {name: found.text for name, found in files.items()}
    wrong = {error["loc"][1] for error in errors}
    sound = {name: value for name, value in values.items() if name not in wrong}
    errors += _field_errors(sound | {name: "given" for name in wrong if name == DATA.name})
    if errors:
        raise invalid([_with_given(error, given) for error in errors], sources.base_url)
    digests = {name: found.digest for name, found in files.items()}
    return Submission(kind=TRAIN, task={"recipe": values}, input_digest=_digest(values | digests), notes=notes)


def _files(fields: Mapping[str, Any], sources: Sources) -> tuple[dict[str, Found], list[dict[str, Any]]]:
    """The files that fields name, and the errors of those that cannot be used."""
    found, errors = {}, []
    for name in _FILES:
        if name in fields:
            try:
                found[name] = sources.found(name, fields[name])
            except WrongSource as error:
                errors.append(error.entry)
    return found, errors


def _field_errors(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    try:
        read_recipe(None, values, trains=True)
    except RecipeError as error:
        return [one.as_json() for one in error.errors]
    return []


def _with_given(error: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with what the caller wrote, not the path that stands for it here."""
    name = error["loc"][1] if len(error["loc"]) > 1 else None
    shown = given.get(name) if name in _FILES else error.get("input")
    return error | {"input": shown[:200] if isinstance(shown, str) else shown}


def _ignored(name: str, taken: set[str]) -> str:
    near = difflib.get_close_matches(name, taken, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"warning: {name[:80]} is not a field of this endpoint and was ignored{hint}"


def generation(path: str, body: Mapping[str, Any], sources: Sources) -> Submission:
    """A sound from a prompt. Raises: Refused, with every wrong field."""
    from pydantic import ValidationError

    given = {name: value for name, value in body.items() if value is not None}
    model = player_endpoints()[path]
    declared = _generation_model()
    notes = [_ignored(name, set(declared.model_fields)) for name in given if name not in declared.model_fields]
    try:
        values = declared.model_validate(given).model_dump()
    except ValidationError as error:
        raise invalid([_pydantic_entry(one) for one in error.errors()], sources.base_url) from error
    errors, adapters = _adapters(values.pop("loras"), sources)
    longest = playable_models()[model].max_seconds
    if values["duration"] > longest:
        errors.append(entry("duration", "less_than_equal", f"must be at most {longest}", values["duration"]))
    if errors:
        raise invalid(errors, sources.base_url)
    task = {"model": model, "adapters": adapters, **values}
    drawn = values["seed"] is None  # another sound each time
    return Submission(kind=GENERATE, task=task, input_digest="" if drawn else _digest(task), notes=notes)


def _pydantic_entry(error: Mapping[str, Any]) -> dict[str, Any]:
    return {"loc": ["body", *error["loc"]], "type": error["type"], "msg": error["msg"], "input": error.get("input")}


def _adapters(loras: list[dict[str, Any]], sources: Sources) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    errors, adapters = [], []
    for number, lora in enumerate(loras):
        try:
            found = sources.found("path", lora["path"])
            adapters.append({"file": found.text, "digest": found.digest, "scale": lora["scale"]})
        except WrongSource as error:
            errors.append(error.entry | {"loc": ["body", "loras", number, "path"]})
    return errors, adapters


def _generation_model() -> type[BaseModel]:
    """The fields of text-to-audio as the hosted endpoints publish them, and `loras` as its other endpoints take it."""
    from typing import Annotated, Literal

    from pydantic import ConfigDict, Field, create_model

    lora_fields: dict[str, Any] = {
        "path": (Annotated[str, Field(min_length=1, description="address of an adapter file")], ...),
        "scale": (Annotated[float, Field(ge=-4, le=4, description="strength of the adapter")], 1.0),
    }
    lora = create_model("Lora", __config__=ConfigDict(allow_inf_nan=False), **lora_fields)
    fields: dict[str, Any] = {
        "prompt": (Annotated[str, Field(min_length=1, max_length=4000, pattern=r"\S")], ...),
        "negative_prompt": (Annotated[str, Field(max_length=4000)], ""),
        "duration": (Annotated[float, Field(ge=1, le=380)], 30.0),
        "num_inference_steps": (Annotated[int, Field(ge=1, le=100)] | None, None),
        "guidance_scale": (Annotated[float, Field(ge=0, le=25)] | None, None),
        "seed": (Annotated[int, Field(ge=0, le=MAX_SEED)] | None, None),
        "output_format": (Literal["wav", "flac"], "wav"),
        "loras": (Annotated[list[lora], Field(max_length=_MOST_ADAPTERS)], []),  # type: ignore[valid-type]
    }
    return create_model("TextToAudio", __config__=ConfigDict(allow_inf_nan=False), **fields)


def generation_schema() -> dict[str, Any]:
    """JSON Schema of a generation's body."""
    return _generation_model().model_json_schema(ref_template="#/components/schemas/{model}")


def training_fields() -> Iterator[Field]:
    """The fields of a training's body, the data first."""
    yield DATA
    yield from TAKEN


def _digest(values: Mapping[str, Any]) -> str:
    """Of the values that decide a result."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
