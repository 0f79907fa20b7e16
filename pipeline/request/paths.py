"""What a request names by path or address, and what of it is plainly not there. Light: looks, fetches nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pipeline.errors import FieldError

NO_DATA, NO_CHECKPOINT = "no such file or folder", "no such file"
GIVE_DATA = "Give the path of a .zip or a folder of clips with a .txt caption beside each."
GIVE_CHECKPOINT = "Give the .safetensors file of an adapter to continue from, or leave it out to start a new one."


def is_address(text: str) -> bool:
    """Whether it must be fetched."""
    return text.startswith(("http://", "https://"))


def local_path(text: str) -> Path:
    """Of a path or a file:// address."""
    return Path(unquote(urlparse(text).path)) if text.startswith("file://") else Path(text)


def missing_files(values: Mapping[str, Any]) -> list[FieldError]:
    """One entry per field that names a file of this disk that is not there.

    Args:
        values: by field name; those that are wrong in themselves left out.
    """
    return [
        FieldError(loc=(name,), type="file_missing", msg=f"{why}. {remedy}".removesuffix("."), input=values[name])
        for name, why, remedy in _found(values)
    ]


def _found(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(field, what is wrong with it, what to give)."""
    data, checkpoint = values.get("audio_data_url"), values.get("lora_checkpoint_url")
    if data is not None and not is_address(data) and not data.startswith("data:") and not local_path(data).exists():
        yield "audio_data_url", NO_DATA, GIVE_DATA
    if checkpoint is not None and not is_address(checkpoint) and not local_path(checkpoint).is_file():
        yield "lora_checkpoint_url", NO_CHECKPOINT, GIVE_CHECKPOINT
