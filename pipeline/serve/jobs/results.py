"""What a caller gets for a job that ended: the output object, or the error. Light: standard library only."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.serve.errors import field_errors, flat_error
from pipeline.serve.jobs.job import Job
from pipeline.serve.jobs.job_folder import JobFolder

CANCELLED, TIMED_OUT, FAILED = "client_cancelled", "request_timeout", "runner_server_error"
_FIELD_OF_TYPE = {
    "SourceNotFound": ("audio_data_url", "file_download_error"),
    "RankTooLarge": ("rank", "rank_too_large_for_adapter"),
    "AdapterMismatch": ("lora_checkpoint_url", "incompatible_lora_checkpoint"),
}
"""Errors of the command line that are about a field without naming it, and the hosted trainer's type."""
RESULT_NAMES = ("adapter", "audio")
"""Names of the files of a result, without suffix."""
_MEDIA_TYPES = {".wav": "audio/wav", ".flac": "audio/flac", ".json": "application/json"}
ANY_MEDIA_TYPE = "application/octet-stream"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a job ended, for its caller."""

    status: int
    body: dict[str, Any]
    error: str | None = None
    error_type: str | None = None


def cancelled() -> Ending:
    """A job that its caller cancelled."""
    return _flat(499, "the request was cancelled", CANCELLED)


def not_started(seconds: float) -> Ending:
    """A job that waited longer than its caller allowed."""
    return _flat(504, f"the request did not start within {seconds:g} s", TIMED_OUT)


def lost(attempts: int) -> Ending:
    """A job whose workers ended without a word."""
    return _flat(500, f"the process of this request was killed {attempts} times and left no result", FAILED)


def stalled(seconds: float) -> Ending:
    """A job that stopped reporting."""
    return _flat(500, f"the process of this request reported nothing for {seconds:g} s and was ended", FAILED)


def not_run(why: str) -> Ending:
    """A job that this server could not run."""
    return _flat(500, f"this server could not run the request ({why}); send it again", FAILED)


def _flat(status: int, message: str, error_type: str) -> Ending:
    return Ending(status=status, body=flat_error(message, error_type), error=message, error_type=error_type)


def media_type(name: str) -> str:
    """Content type of a file of a result."""
    return _MEDIA_TYPES.get(Path(name).suffix, ANY_MEDIA_TYPE)


def ending_of(job: Job, folder: JobFolder, code: int, address: Callable[[str, str], str]) -> Ending:
    """What the commands of a job left.

    Args:
        code: exit code of the last command, negative for a signal.
        address: the address of a file by the job's id and the file's name.
    """
    document = _document(folder)
    if code == 0:
        files = sorted(file for file in folder.output.iterdir() if file.stem in RESULT_NAMES)
        objects = {file.suffix: _file_object(job, file, address) for file in files}
        return _output(job, objects, document) or _flat(500, "the command ended without its files", FAILED)
    if code < 0:
        return _flat(500, _killed(-code), FAILED)
    return _failure(job, document, code)


def _output(job: Job, objects: dict[str, dict[str, Any]], document: Any) -> Ending | None:
    """The output object; None where a file is missing."""
    if job.kind == "train":
        if {".safetensors", ".json"} <= objects.keys():
            return Ending(status=200, body={"lora_file": objects[".safetensors"], "config_file": objects[".json"]})
        return None
    audio = next((objects[suffix] for suffix in (".wav", ".flac") if suffix in objects), None)
    if audio is None:
        return None
    return Ending(status=200, body={"audio": audio, "seed": dict(document or {}).get("seed")})


def _file_object(job: Job, file: Path, address: Callable[[str, str], str]) -> dict[str, Any]:
    return {
        "url": address(job.id, file.name),
        "content_type": media_type(file.name),
        "file_name": file.name,
        "file_size": file.stat().st_size,
    }


def _killed(number: int) -> str:
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    why = " (most often because memory was used up)" if name == "SIGKILL" else ""
    return f"the process of this request was ended by {name}{why}; send the request again to continue where it stopped"


def _failure(job: Job, document: Any, code: int) -> Ending:
    """A 422 where every entry is about a field or a file, else a 500."""
    entries = document.get("detail") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        return _flat(500, f"the command ended with exit code {code}; the log says why", FAILED)
    named = [_named(entry) for entry in entries]
    message = str(document.get("message", "")) or "the request failed"
    if all(len(entry["loc"]) > 1 for entry in named):
        return Ending(status=422, body=field_errors(named, job.base_url), error=message, error_type="invalid_input")
    return _flat(500, message, FAILED)


def _named(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with the field that its type is about."""
    field, type = _FIELD_OF_TYPE.get(entry["type"], (None, entry["type"]))
    known = entry["loc"] if field is None or len(entry["loc"]) > 1 else [*entry["loc"], field]
    return entry | {"loc": known, "type": type}


def _document(folder: JobFolder) -> Any:
    """What a command printed on stdout as JSON; None where it printed none."""
    try:
        return json.loads(folder.without_paths(folder.stdout.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
