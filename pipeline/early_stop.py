"""Ctrl-C before a command has begun: it ends at once, with one line. Light: standard library only."""

from __future__ import annotations

# Built in: `signal` itself imports enum, which a Ctrl-C could cut.
import _signal as signal  # type: ignore[import-not-found]
import os

STOPPED_EARLY = 130
"""Exit code of a Ctrl-C before anything began."""


def leave_at_once() -> None:
    """End the process on Ctrl-C, without unwinding what is being imported, until `raise_from_now_on`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it was inherited as ignored
        signal.signal(signal.SIGINT, _leave)


def raise_from_now_on() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again: the command has begun, and may have something to tidy up."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: object) -> None:
    try:
        os.write(2, b"\nstopped before anything began\n")
    finally:
        os._exit(STOPPED_EARLY)
