"""The OpenAPI document, made from the declarations of the fields. Light: pydantic is imported on use."""

from __future__ import annotations

from typing import Any

from pipeline.request.json_schema import request_schema
from pipeline.serve.submission import PLAYER, TAKEN, TRAINER, generation_schema, player_endpoints

_FILE = {
    "type": "object",
    "required": ["url"],
    "properties": {
        "url": {"type": "string"},
        "content_type": {"type": "string"},
        "file_name": {"type": "string"},
        "file_size": {"type": "integer"},
    },
}
_ENTRY = {
    "type": "object",
    "required": ["loc", "msg", "type", "url"],
    "properties": {
        "loc": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
        "msg": {"type": "string"},
        "type": {"type": "string"},
        "url": {"type": "string"},
    },
}
_LINE = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("message", "level", "source", "timestamp")},
}
_ADDRESSES = {name: {"type": "string"} for name in ("request_id", "response_url", "status_url", "cancel_url")}


def document(base_url: str) -> dict[str, Any]:
    """The whole document, version 3.1."""
    paths: dict[str, Any] = {f"/{TRAINER}": _submit("TrainerInput", "Train an adapter.")}
    paths |= {f"/{PLAYER}/{path}": _submit("TextToAudio", f"A sound from {model}.") for path, model in _players()}
    paths |= _requests(TRAINER, "TrainerOutput") | _requests(PLAYER, "AudioOutput")
    return {
        "openapi": "3.1.0",
        "info": {"title": "stable-audio-3-trainer", "version": "1"},
        "servers": [{"url": base_url}],
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {"schemas": _schemas(), "securitySchemes": {"key": _KEY}},
    }


_KEY = {"type": "apiKey", "in": "header", "name": "Authorization", "description": "Key KEY"}


def _players() -> list[tuple[str, str]]:
    return sorted(player_endpoints().items())


def _schemas() -> dict[str, Any]:
    trainer = request_schema(TAKEN) | {"additionalProperties": True}
    trainer.pop("$schema")
    sound = generation_schema()
    for schema in (trainer, sound):
        schema["properties"] = {
            name: rule if name in schema["required"] else _or_null(rule) for name, rule in schema["properties"].items()
        }
    return {
        "TrainerInput": trainer,
        **sound.pop("$defs", {}),
        "TextToAudio": sound,
        "File": _FILE,
        "TrainerOutput": _object(lora_file=_ref("File"), config_file=_ref("File")),
        "AudioOutput": _object(audio=_ref("File"), seed={"type": ["integer", "null"]}),
        "Submitted": _object(status={"const": "IN_QUEUE"}, queue_position={"type": "integer"}, **_ADDRESSES),
        "Status": _object(
            status={"enum": ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]},
            logs={"type": "array", "items": _LINE},
            **_ADDRESSES,
        ),
        "FieldErrors": _object(detail={"type": "array", "items": _ENTRY}, message={"type": "string"}),
        "Error": {"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}},
        "Cancelled": _object(status={"type": "string"}),
    }


def _or_null(rule: dict[str, Any]) -> dict[str, Any]:
    """The rule of a field that may be left out: clients then send null."""
    if "type" in rule:
        listed = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
        choices = {"enum": [*rule["enum"], None]} if None not in rule.get("enum", [None]) else {}
        return rule | {"type": [*dict.fromkeys([*listed, "null"])]} | choices
    return rule


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": sorted(properties), "properties": properties}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(name: str, description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(name)}}}


_WEB_ADDRESS = {"type": "string", "pattern": "^($|https?://[a-z0-9.]+(/|$))"}
_REFUSALS = {
    "400": _answer("Error", "a request that cannot be answered"),
    "401": _answer("Error", "a key is needed"),
    "403": _answer("Error", "not allowed"),
    "404": _answer("Error", "there is no such address or request"),
    "413": _answer("Error", "the body is too large"),
}


def _submit(schema: str, summary: str) -> dict[str, Any]:
    webhook = {"name": "fal_webhook", "in": "query", "required": False, "schema": _WEB_ADDRESS}
    answers = {"200": _answer("Submitted", "in the queue"), "422": _answer("FieldErrors", "wrong fields")}
    body = {"required": True, "content": {"application/json": {"schema": _ref(schema)}}}
    return {
        "post": {"summary": summary, "parameters": [webhook], "requestBody": body, "responses": answers | _REFUSALS}
    }


def _requests(app: str, output: str) -> dict[str, Any]:
    """Status, result and cancellation of an application's requests."""
    id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    logs = {"name": "logs", "in": "query", "schema": {"enum": ["0", "1", "true", "false"]}}
    running, ended = _answer("Status", "waiting or at work"), _answer("Status", "it has its result")
    failed = {
        "422": _answer("FieldErrors", "wrong files"),
        "499": _answer("Error", "cancelled"),
        "500": _answer("Error", "failed"),
        "504": _answer("Error", "not started in time"),
    }
    cancelled = {code: _answer("Cancelled", "what was done") for code in ("200", "202", "400", "404")}
    return {
        f"/{app}/requests/{{id}}/status": {
            "get": {"parameters": [id, logs], "responses": {"200": ended, "202": running} | _REFUSALS}
        },
        f"/{app}/requests/{{id}}": {
            "get": {"parameters": [id], "responses": {"200": _answer(output, "the output")} | failed | _REFUSALS}
        },
        f"/{app}/requests/{{id}}/cancel": {"put": {"parameters": [id], "responses": _REFUSALS | cancelled}},
    }
