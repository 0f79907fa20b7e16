"""Addresses of this server's own files, which nobody can guess: a signature stands in their path.

Light: standard library only.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

_SIGNATURE_DIGITS = 32
_UNSAFE = re.compile(r"[^\w.\- ]+")


@dataclass(frozen=True)
class Signer:
    """Signs texts with the server's secret."""

    secret: bytes

    def sign(self, *parts: str) -> str:
        """32 hex digits that only this server can compute for these parts."""
        message = "\n".join(parts).encode()
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()[:_SIGNATURE_DIGITS]

    def is_signed(self, signature: str, *parts: str) -> bool:
        """Whether a signature is that of these parts; compared in constant time."""
        return hmac.compare_digest(signature.encode("utf-8", "replace"), self.sign(*parts).encode())

    def file_path(self, id: str, name: str) -> str:
        """Path of a file's address."""
        return f"/files/{self.sign('file', id, name)}/{id}/{quote(name)}"

    def upload_path(self, id: str, name: str) -> str:
        """Path that a file's bytes are put to, which needs no key."""
        return f"/upload/{self.sign('upload', id, name)}/{id}/{quote(name)}"

    def own_file(self, url: str) -> tuple[str, str] | None:
        """(id, name) of a file that this server gave the address of, under whichever of its names; None for any other.

        The signature tells: no other server can have made it.
        """
        try:
            pieces = urlsplit(url).path.split("/")
        except ValueError:
            return None
        if len(pieces) != 5 or pieces[1] != "files":
            return None
        signature, id, name = pieces[2], pieces[3], unquote(pieces[4])
        return (id, name) if self.is_signed(signature, "file", id, name) else None

    def token(self, owner: str, expires: int) -> str:
        """A token with which its owner may upload until a time (seconds since 1970)."""
        return f"{owner}.{expires}.{self.sign('token', owner, str(expires))}"

    def owner_of_token(self, token: str, now: float) -> str | None:
        """Whose token it is; None when it is wrong or has expired."""
        owner, _, rest = token.partition(".")
        expires, _, signature = rest.partition(".")
        if not expires.isdigit() or not self.is_signed(signature, "token", owner, expires) or int(expires) < now:
            return None
        return owner


def safe_name(name: str, fallback: str = "upload.bin") -> str:
    """A file name that is no path: letters, digits, spaces, dots, hyphens and underscores, at most 100 of them."""
    last = name.replace("\\", "/").rpartition("/")[2]
    cleaned = _UNSAFE.sub("_", last).strip(" .")[-100:]
    return cleaned or fallback
