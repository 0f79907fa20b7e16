"""The option --version. Light: Typer and the standard library."""

from __future__ import annotations

import platform

import typer

from stages.versions import version_of


def show_version(wanted: bool) -> None:
    """Callback of --version: ours, and what most decides how it runs."""
    if wanted:
        ours, torch = version_of("stable-audio-3-trainer"), version_of("torch")
        typer.echo(f"sa3-trainer {ours} (python {platform.python_version()}, torch {torch})")
        raise typer.Exit()
