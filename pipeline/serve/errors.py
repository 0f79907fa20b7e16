"""Errors of the HTTP door, in the two shapes that the hosted trainer's clients understand. Light: standard library.

A wrong field or file is a list under `detail`, everything else one text with an `error_type`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.errors import PipelineError

ERROR_PAGE = "/errors"


class ServeError(PipelineError):
    """The server cannot start as it was asked to."""


class Refused(Exception):
    """A request that is answered with an error: its status, its body and its headers."""

    def __init__(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        super().__init__(body.get("message", ""))
        self.status, self.body, self.headers = status, body, headers or {}


def flat_error(message: str, error_type: str) -> dict[str, Any]:
    """The body of an error that is not about a field."""
    return {"detail": message, "message": message, "error_type": error_type}


def refusal(status: int, message: str, error_type: str = "bad_request", **headers: str) -> Refused:
    """An error that is not about a field."""
    return Refused(status, flat_error(message, error_type), {"x-fal-error-type": error_type, **headers})


def field_errors(entries: Sequence[dict[str, Any]], base_url: str) -> dict[str, Any]:
    """The body of a 422: every entry with the address that explains its type."""
    detail = [entry | {"url": f"{base_url}{ERROR_PAGE}#{entry['type']}"} for entry in entries]
    return {"detail": detail, "message": "; ".join(str(entry["msg"]) for entry in entries)[:2000]}


def invalid(entries: Sequence[dict[str, Any]], base_url: str) -> Refused:
    """A 422: wrong fields, or wrong files of the dataset."""
    return Refused(422, field_errors(entries, base_url), {"x-fal-retryable": "false"})


def entry(field: str, type: str, msg: str, input: object = None) -> dict[str, Any]:
    """One wrong field of the body."""
    return {"loc": ["body", field], "type": type, "msg": msg, "input": input}
