"""Options of how a command reports: --progress, --quiet, --verbose. Light: Typer and the standard library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.report import Report

PROGRESS = Annotated[
    str,
    typer.Option(
        metavar="STYLE",
        help="auto, live (a line that is redrawn), log (lines that stay) or json (one event a line, docs/formats.md)",
    ),
]
QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="only warnings, errors and the files made")]
VERBOSE = Annotated[bool, typer.Option("--verbose", "-v", help="also a line for every clip, and how long phases took")]
REPORT_OPTIONS: dict[str, tuple[Any, Any]] = {
    "progress": (PROGRESS, "auto"),
    "quiet": (QUIET, False),
    "verbose": (VERBOSE, False),
}
"""Type and default by parameter."""


def report_of(flags: dict[str, Any]) -> Report:
    """The report that these options ask for; takes them out of the flags."""
    return report_in(flags.pop("progress"), quiet=flags.pop("quiet"), verbose=flags.pop("verbose"))


def report_in(progress: str, *, quiet: bool, verbose: bool) -> Report:
    """The report of these options. Raises: typer.BadParameter."""
    from pipeline.report import STYLES, Report

    if progress not in STYLES or progress == "quiet":
        styles = ", ".join(style for style in STYLES if style != "quiet")
        raise typer.BadParameter(f"--progress must be one of {styles}; got {progress!r}")
    if quiet and (verbose or progress == "json"):
        raise typer.BadParameter(f"--quiet does not go with {'--verbose' if verbose else '--progress json'}")
    return Report(style="quiet" if quiet else progress, verbose=verbose)
