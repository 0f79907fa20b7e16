"""Runs the application with uvicorn: one server per store, limits on connections. Light: no arrays; uvicorn only."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import sys
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.serve.certificates import own_certificate as made_certificate
from pipeline.serve.errors import ServeError
from pipeline.serve.http.app import make_app
from pipeline.serve.settings import Settings

_KEEP_ALIVE_SECONDS = 30


def run(settings: Settings, *, own_certificate: bool = False) -> None:
    """Serve until a stop signal; the workers save their states before this returns.

    Raises:
        ServeError: another server has the store, or the address is taken.
    """
    settings.state.mkdir(parents=True, exist_ok=True)
    lock = _only_server(settings.state / "server.lock")
    listener = _listener(settings)
    try:
        files = _certificate(settings, own_certificate)
        print(_first_words(settings, listener, own=own_certificate), file=sys.stderr, flush=True)
        server = uvicorn.Server(_config(settings, *files))
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        listener.close()
        os.close(lock)


def _only_server(file: Path) -> int:
    """The lock of the store's queue. Raises: ServeError, where another server holds it."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ServeError(f"another server uses {file.parent.parent}. Stop it, or name another --store.") from None
    return lock


def _listener(settings: Settings) -> socket.socket:
    """The socket that listens. Raises: ServeError."""
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.create_server((settings.host.strip("[]"), settings.port), family=family, backlog=256)
    except OSError as error:
        raise ServeError(f"{settings.host}:{settings.port} cannot be listened on ({error.strerror}).") from None
    listener.set_inheritable(False)
    return listener


def _first_words(settings: Settings, listener: socket.socket, *, own: bool) -> str:
    """Where the page is; for https with a certificate of its own, what the Python client needs in its environment."""
    host, port = listener.getsockname()[:2]
    page = f"https://localhost:{port}" if own else f"{'https' if settings.certificate else 'http'}://{host}:{port}"
    if not own:
        return f"open {page}/ in a browser; Ctrl-C stops, and the next start goes on"
    bundle = settings.state / "tls" / "ca-bundle.pem"
    local = f"FAL_QUEUE_RUN_HOST=localhost:{port} FAL_RUN_HOST=localhost:{port}/run"
    return f"{page}/\nexport {local} SSL_CERT_FILE={bundle} FAL_KEY=any\nuploads of the Python client still go to fal"


def _certificate(settings: Settings, own: bool) -> tuple[Path | None, Path | None]:
    """Certificate and key for https; none for http."""
    if own:
        return made_certificate(settings.state / "tls", settings.host)
    return settings.certificate, settings.certificate_key


def _config(settings: Settings, certificate: Path | None, key: Path | None) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(settings),
        http=protocol_with_patience(settings.limits.silence_seconds),
        ws="none",
        log_level="warning",
        access_log=False,  # addresses of files are capabilities
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.limits.connections,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )


def protocol_with_patience(seconds: float) -> type[asyncio.Protocol]:
    """The HTTP protocol with a limit on the time that a connection may take for its first request's headers."""

    class Protocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.loop.call_later(seconds, self.end_if_silent)

        def end_if_silent(self) -> None:
            """Close a connection on which no request has begun."""
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

    return Protocol
