"""stdout and stderr whose failures never end a command: a closed pipe or terminal, a full disk, letters they lack.

Light: standard library only.
"""

from __future__ import annotations

import errno
import io
import json
import os
import select
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO

_READER_GONE = (errno.EPIPE, errno.EIO, errno.EINVAL)
"""What writing fails with when nobody reads: a closed pipe, a closed terminal; EINVAL: a closed pipe on Windows."""
_RETRY_SECONDS = 1.0
_ERASE_REST = b"\x1b[K"
"""From the cursor to the end of the line."""


class DrawnLine:
    """The line at the foot of a terminal that is drawn again and again; at most one, whichever stream it is written to.

    Anything else that is written there first erases it, so that no message is glued to it.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal handler may write while the same thread is writing
        self.shown = False
        self.after_newline = True
        """Whether what was written last ended its line."""


class ForgivingFile(io.RawIOBase):
    """A raw stream that drops what cannot be written, and remembers why."""

    def __init__(self, raw: io.RawIOBase, drawn: DrawnLine | None = None) -> None:
        self._raw = raw
        self._drawn = drawn if drawn is not None and raw.isatty() else None
        self.failure: OSError | None = None
        """Why something was dropped, where somebody may still be waiting for it: not when the reader is gone."""

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """That of the stream."""
        return self._raw.fileno()

    def isatty(self) -> bool:
        """Whether it is a terminal that is still there."""
        return self._raw.isatty()

    def draw(self, line: bytes) -> None:
        """Show a line in place of the one drawn before, on a terminal, until anything is written."""
        if (drawn := self._drawn) is None:
            return
        with drawn.lock:
            self._write((b"\r" if drawn.shown or drawn.after_newline else b"\n") + line + _ERASE_REST)
            drawn.shown = True

    def erase(self) -> None:
        """Take the drawn line away."""
        if self._drawn is not None:
            with self._drawn.lock:
                self._erase(self._drawn)

    def _erase(self, drawn: DrawnLine) -> None:
        if drawn.shown:
            self._write(b"\r" + _ERASE_REST)
            drawn.shown, drawn.after_newline = False, True

    def write(self, content: Any) -> int:
        """Write, or drop, all bytes that are given."""
        if (drawn := self._drawn) is None:
            return self._write(content)
        with drawn.lock:
            self._erase(drawn)
            if len(content):
                drawn.after_newline = bytes(content[-1:]) == b"\n"
            return self._write(content)

    def _write(self, content: Any) -> int:
        try:
            while (written := self._raw.write(content)) is None:  # another program made the terminal non-blocking
                select.select([], [self._raw], [], _RETRY_SECONDS)
            return written
        except OSError as error:
            if error.errno not in _READER_GONE:
                self.failure = error
            return len(content)


def forgiving(stream: TextIO, drawn: DrawnLine | None = None) -> TextIO:
    """The same stream, for text that it may be unable to write: letters it lacks become escapes such as `\\xe9`."""
    buffer = getattr(stream, "buffer", None)
    unbuffered = isinstance(buffer, io.RawIOBase)  # python -u
    raw = buffer if unbuffered else getattr(buffer, "raw", None)
    if not isinstance(raw, io.RawIOBase):  # replaced by an embedding program
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(ForgivingFile(raw, drawn)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=unbuffered or stream.isatty() or stream is sys.stderr,
    )


def install_streams() -> None:
    """Make this process's stdout and stderr forgiving. Those that were closed at the start swallow everything."""
    for number in (0, 1, 2):
        with suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: else the next file opened would get it
    drawn = DrawnLine()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        kept_open = open(os.devnull, "w", encoding="utf-8") if stream is None else forgiving(stream, drawn)  # noqa: SIM115, PTH123
        setattr(sys, name, kept_open)


def raw_file(stream: TextIO) -> ForgivingFile | None:
    """The raw file below one of this process's streams; None where another program replaced the stream."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, ForgivingFile) else None


def write_now(text: str) -> None:
    """Write to stderr from a signal handler, which may have interrupted a print to the same stream."""
    if (raw := raw_file(sys.stderr)) is None:
        print(text, file=sys.stderr, flush=True)
    else:
        raw.write(f"{text}\n".encode(sys.stderr.encoding, "backslashreplace"))


def lost_output() -> OSError | None:
    """Why a part of stdout could not be written while its reader may be waiting for it; None where all was."""
    sys.stdout.flush()
    raw = raw_file(sys.stdout)
    return raw.failure if raw is not None else None


DOCUMENTS_VERSION = 1
"""Of what --json prints (docs/documents.schema.json); raised when a field changes its meaning or goes."""


def print_document(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout: in ASCII, which every encoding can write."""
    print(json.dumps({"version": DOCUMENTS_VERSION, **document}))
