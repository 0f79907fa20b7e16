"""Where a request's files are: this server's uploads, data: addresses, http(s), and paths where they are allowed.

Light: standard library only.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.request.opener import is_public
from pipeline.request.paths import is_url, local_path
from pipeline.serve.addresses import Signer
from pipeline.serve.errors import entry
from pipeline.serve.settings import Settings

_DATA_HEADS = ("data:application/zip;base64", "data:application/x-zip-compressed;base64")
_UPLOAD_FIRST = "upload the file to this server and give the address that it answers with"
_OR_ALLOW = "or start the server with --allow-private-addresses"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file of a request."""

    text: str
    """A path, or an address to download."""
    digest: str
    """What identifies its content, as far as that is known without a download."""


class WrongSource(ValueError):
    """A file that cannot be used; `entry` is the error of its field."""

    def __init__(self, field: str, type: str, msg: str, given: object) -> None:
        super().__init__(msg)
        self.entry = entry(field, type, msg, given)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Finds the files that requests name."""

    settings: Settings
    signer: Signer
    base_url: str
    file_of: Callable[[str, str], tuple[Path, str] | None]
    """Path and digest of a file of this server by id and name; None where it is gone or not whole."""
    store_data: Callable[[bytes], tuple[Path, str]]
    """Keeps the bytes of a data: address; path and digest."""

    def found(self, field: str, given: Any) -> Found:
        """The file that a field names. Raises: WrongSource."""
        if not isinstance(given, str) or not given.strip():
            raise WrongSource(field, "string_type", "must be the address of a file", given)
        if given.startswith("data:"):
            return self._data(field, given)
        own = self.signer.own_file(given)
        if own is not None:
            return self._own(field, given, *own)
        if is_url(given):
            return self._remote(field, given)
        return self._local(field, given)

    def _own(self, field: str, given: str, id: str, name: str) -> Found:
        file = self.file_of(id, name)
        if file is None:
            raise WrongSource(field, "file_download_error", "this server has no such file, or not all of it", given)
        return Found(text=str(file[0]), digest=file[1])

    def _data(self, field: str, given: str) -> Found:
        """The bytes of a data: address are kept as a file; they are no part of the queue."""
        head, _, body = given.partition(",")
        if field != "audio_data_url" or head not in _DATA_HEADS:
            raise WrongSource(field, "value_error", f"a data: address must begin with {_DATA_HEADS[0]},", head[:80])
        try:
            content = base64.b64decode(body, validate=True)
        except ValueError as error:
            raise WrongSource(field, "value_error", f"the base64 is damaged ({error})", head) from error
        path, digest = self.store_data(content)
        return Found(text=str(path), digest=digest)

    def _remote(self, field: str, given: str) -> Found:
        """An address to download; one that is plainly private is refused now, the others when they are connected to."""
        try:
            host = urlsplit(given).hostname or ""
        except ValueError as error:
            raise WrongSource(field, "value_error", f"is no valid address ({error})", given) from error
        if not self.settings.allow_private and _is_plainly_private(host):
            msg = f"{host} is an address of a private network or of this machine: {_UPLOAD_FIRST}, {_OR_ALLOW}"
            raise WrongSource(field, "file_download_error", msg, given)
        return Found(text=given, digest=hashlib.sha256(given.encode()).hexdigest())

    def _local(self, field: str, given: str) -> Found:
        """A path, where the server was started with a folder below which it may be."""
        root = self.settings.files_below
        if root is None:
            raise WrongSource(field, "value_error", f"must be an http(s) or data: address: {_UPLOAD_FIRST}", given)
        try:
            path = (root / local_path(given)).resolve()
            allowed = path.is_relative_to(root.resolve()) and path.exists()
        except (OSError, ValueError):  # too long a name, a NUL, links in a circle
            allowed = False
        if not allowed:
            raise WrongSource(field, "file_missing", "there is no such file below the folder that is served", given)
        return Found(text=str(path), digest=hashlib.sha256(f"path {path}".encode()).hexdigest())


def _is_plainly_private(host: str) -> bool:
    """Whether a host is an address that is not public, or this machine's name."""
    if host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return not is_public(host)
    except ValueError:
        return False
