"""The command serve: its options, and the ASGI server. Light: standard library and Typer only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli_errors import reported_errors
from pipeline.path_errors import path_errors


def serve(
    host: Annotated[
        str, typer.Option(help="address to listen on; one that others reach needs --key-file")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on", min=0, max=65535)] = 8765,
    store: Annotated[Path, typer.Option(help="folder of finished artifacts, latents and the queue")] = Path(
        "artifacts"
    ),
    key_file: Annotated[Path | None, typer.Option(help="file with one key a line, readable by you only")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="https with a certificate that is made on first use")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="certificate (PEM) for https")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="its private key")] = None,
    device: Annotated[list[str] | None, typer.Option(help="device of a worker; repeat for several at once")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of a worker; 0: torch's default")] = 0,
    public_url: Annotated[str | None, typer.Option(help="address of this server behind a proxy")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="web page origin that may call; repeatable")] = None,
    allow_private_addresses: Annotated[
        bool, typer.Option(help="fetch from private networks too", show_default=False)
    ] = False,
    files_below: Annotated[Path | None, typer.Option(help="folder below which paths may be read as data")] = None,
    keep_days: Annotated[float, typer.Option(help="days that finished jobs and uploads are kept", min=0.01)] = 30.0,
) -> None:
    """Let clients of the hosted trainer train on this machine.

    Jobs survive any end of the server. Needs the extra serve.

    Example: sa3-trainer serve --store artifacts
    """
    from pipeline.serve.settings import Limits, Settings, read_keys

    with reported_errors("serve"), path_errors({"--store": store}):
        settings = Settings(
            store=store.absolute(),
            host=host,
            port=port,
            keys=read_keys(key_file),
            devices=tuple(dict.fromkeys(device or ["auto"])),
            threads=threads,
            public_url=public_url and public_url.rstrip("/"),
            origins=tuple(allow_origin or ()),
            allow_private=allow_private_addresses,
            files_below=files_below and files_below.absolute(),
            certificate=tls_cert,
            certificate_key=tls_key,
            limits=Limits(keep_days=keep_days),
        )
        run_server(settings, own_certificate=tls)


def run_server(settings: Any, *, own_certificate: bool = False) -> None:
    """Serve until a stop signal. Raises: ServeError."""
    from pipeline.serve.settings import check_certificate, check_exposure

    check_exposure(settings)
    check_certificate(settings)
    _check_packages()
    from pipeline.serve.server import run

    run(settings, own_certificate=own_certificate)


def _check_packages() -> None:
    """Raise ServeError where the extra is not installed."""
    from importlib.util import find_spec

    from pipeline.serve.errors import ServeError

    if find_spec("fcntl") is None:
        raise ServeError("serve needs Linux or macOS: its workers are found again by locks that Windows does not have.")
    if missing := [name for name in ("starlette", "uvicorn", "cryptography") if find_spec(name) is None]:
        raise ServeError(f'serve needs {", ".join(missing)}. Install the extra: `pip install -e ".[serve]"`.')


def add_serve_command(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(serve)
