"""Paths and URLs of a request, and an early check that local files exist. Light: standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from os.path import normpath
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pipeline.errors import FieldError

NO_DATA, NO_CHECKPOINT = "no such file or folder", "no such file"
GIVE_DATA = "Give the path of a .zip or a folder of clips with a .txt caption beside each."
GIVE_CHECKPOINT = "Give the .safetensors or .ckpt of an adapter to continue from, or leave it out to start a new one."


_VARIABLE = re.compile(r"\$(\w+|\{\w+\})(?=/|$)")
PATH_FIELDS = ("audio_data_url", "lora_checkpoint_url", "weights", "store", "output")
"""Fields that hold a path, or may hold one."""


def with_home(text: str) -> str:
    """A path with the `~`, `~user`, `$HOME` and other variables in it replaced as a shell would; other text as it is.

    A file or folder that has a `$` in its name is meant by it.
    """
    if "$" in text and not is_url(text) and not text.startswith("data:") and not Path(text).exists():
        text = os.path.expandvars(text)
    return os.path.expanduser(text)  # noqa: PTH111 (a Path would change other texts, such as URLs)


def arguments_with_home(arguments: Sequence[str]) -> list[str]:
    """A command line as a shell would have expanded it: quoting and `--flag=~/x` keep it from doing so."""
    return [_argument_with_home(argument) for argument in arguments]


def _argument_with_home(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    if equals and flag.startswith("--"):
        return f"{flag}={_argument_with_home(value)}"
    return with_home(argument) if argument == "~" or argument.startswith("~/") else argument


def unknown_home_errors(values: Mapping[str, Any]) -> list[FieldError]:
    """One error per path that begins with the `~` of an unknown user, before a folder of that name is made."""
    why = "names the home folder of a user that is not known here"
    return [_new_name(name, "no_such_user", why, text) for name, text, _ in _beginning_with(re.compile("~"), values)]


def unset_variable_errors(values: Mapping[str, Any]) -> list[FieldError]:
    """One error per path that begins with a variable that is not set, before a folder of that name is made."""
    return [
        _new_name(name, "variable_not_set", f"{variable} is not set, or not exported", text)
        for name, text, variable in _beginning_with(_VARIABLE, values)
    ]


def _beginning_with(pattern: re.Pattern[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Field, text and what the pattern found, of the paths that begin so and name nothing that exists."""
    for name in PATH_FIELDS:
        text = values.get(name)
        if isinstance(text, str) and (found := pattern.match(text)) and not Path(text).exists():
            yield name, text, found[0]


def _new_name(name: str, type: str, why: str, text: str) -> FieldError:
    return FieldError(loc=(name,), type=type, msg=f"{why}; a folder of that very name is ./{text}", input=text)


def is_url(text: str) -> bool:
    """Whether it must be downloaded."""
    return text.startswith(("http://", "https://"))


def local_path(text: str) -> Path:
    """The path that a path or a file:// URL names."""
    return Path(unquote(urlparse(text).path)) if text.startswith("file://") else Path(text)


def path_in_data(text: str, data: str) -> str:
    """The name inside the data of a file that is named by it, or by its path from here; any other text as it is."""
    if is_url(data) or data.startswith("data:") or not (folder := local_path(data)).is_dir():
        return normpath(text)
    path = Path(with_home(text))
    if (folder / text).is_file() and not path.is_absolute():
        path = folder / text
    inside = Path(normpath(path.absolute()))
    root = Path(normpath(folder.absolute()))
    return inside.relative_to(root).as_posix() if inside.is_relative_to(root) and path.is_file() else normpath(text)


def adapter_suffix(url: str) -> str:
    """Suffix under which an adapter file of this address is stored; its container is told by its bytes."""
    return ".ckpt" if urlparse(url).path.lower().endswith((".ckpt", ".pt", ".pth")) else ".safetensors"


def missing_path_errors(values: Mapping[str, Any]) -> list[FieldError]:
    """One error per field that names a local file or folder that does not exist.

    Args:
        values: by field name, without the fields that are invalid on their own.
    """
    return [
        FieldError(loc=(name,), type="file_missing", msg=f"{why}. {remedy}".removesuffix("."), input=values[name])
        for name, why, remedy in _missing(values)
    ]


def _missing(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(field, what is wrong, what to give instead)."""
    data, checkpoint = values.get("audio_data_url"), values.get("lora_checkpoint_url")
    if data is not None and not is_url(data) and not data.startswith("data:") and not local_path(data).exists():
        yield "audio_data_url", NO_DATA, GIVE_DATA
    if checkpoint is not None and not is_url(checkpoint) and not local_path(checkpoint).is_file():
        yield "lora_checkpoint_url", NO_CHECKPOINT, GIVE_CHECKPOINT
