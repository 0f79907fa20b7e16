"""What the server was started with, and the limits that protect it. Light: standard library only."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.serve.errors import ServeError

LOCAL_OWNER = "local"
"""Owner of every job of a server without keys."""
_SHORTEST_KEY = 16


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    body_bytes: int = 192 * 2**20
    """A request's JSON; it may hold a zip as a data: address."""
    upload_bytes: int = 8 * 2**30
    owner_bytes: int = 64 * 2**30
    """All uploads of one key."""
    reserved_disk_bytes: int = 2**30
    """Uploads are refused when less would be left."""
    queued_jobs: int = 100
    """Of one key."""
    silence_seconds: float = 30.0
    """Longest pause in a request's body, and longest time that its headers may take."""
    connections: int = 512
    stall_seconds: float = 3600.0
    """A command that prints nothing for this long is ended."""
    cancel_seconds: float = 8.0
    """Time that a cancelled command has to save its state before it is killed."""
    keep_days: float = 30.0
    """Finished jobs and uploads are removed after this time; the store keeps the trainings."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One server."""

    store: Path
    host: str = "127.0.0.1"
    port: int = 8765
    keys: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("auto",)
    threads: int = 0
    public_url: str | None = None
    origins: tuple[str, ...] = ()
    """Other pages whose scripts may call this server."""
    allow_private: bool = False
    """Fetch from private addresses too."""
    files_below: Path | None = None
    """Folder below which paths and file:// addresses may be read; None: none may."""
    certificate: Path | None = None
    certificate_key: Path | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def state(self) -> Path:
        """Folder of the queue, of jobs and of uploads."""
        return self.store / "serve"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return is_loopback(self.host)

    def owner_of(self, key: str) -> str | None:
        """Who a key belongs to, None for a wrong one; every key is compared, each in constant time."""
        given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for known in self.keys:
            digest = hashlib.sha256(known.encode()).digest()
            if hmac.compare_digest(given, digest):
                found = digest.hex()[:16]
        return found


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def read_keys(file: Path | None) -> tuple[str, ...]:
    """The keys of a file, one a line; empty lines and those that begin with # are left out.

    Raises:
        ServeError: it cannot be read, others may read it, it holds no key, or one that could be guessed.
    """
    if file is None:
        return ()
    try:
        text, mode = file.read_text(encoding="utf-8"), file.stat().st_mode
    except (OSError, ValueError) as error:
        raise ServeError(f"--key-file {file} cannot be read ({error}). Name a text file with one key a line.") from None
    if mode & 0o077:
        raise ServeError(f"--key-file {file} can be read by other users. Type `chmod 600 {file}`, then start again.")
    keys = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    check_keys(keys, file)
    return keys


def check_keys(keys: Sequence[str], file: Path) -> None:
    """Raise ServeError where there is no key or one that is too short."""
    make = "`python3 -c 'import secrets; print(secrets.token_urlsafe(32))'` makes one"
    if not keys:
        raise ServeError(f"--key-file {file} holds no key. Write one a line; {make}.")
    if any(len(key) < _SHORTEST_KEY for key in keys):
        raise ServeError(f"--key-file {file} holds a key of fewer than {_SHORTEST_KEY} characters. {make}.")


def check_exposure(settings: Settings) -> None:
    """Refuse a server that others reach and that asks for no key. Raises: ServeError."""
    if not settings.is_loopback and not settings.keys:
        raise ServeError(
            f"--host {settings.host} can be reached by other machines, so a key is required. Write one into a file "
            "that only you can read and add --key-file FILE, or leave out --host."
        )


def check_certificate(settings: Settings) -> None:
    """Refuse a certificate without its key, and files that are not there. Raises: ServeError."""
    given = {"--tls-cert": settings.certificate, "--tls-key": settings.certificate_key}
    missing = [flag for flag, file in given.items() if file is None]
    if len(missing) == 1:
        raise ServeError(f"{missing[0]} is missing: https needs certificate and key. --tls makes both itself.")
    for flag, file in given.items():
        if file is not None and not file.is_file():
            raise ServeError(f"{flag} {file}: there is no such file.")
