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
from contextlib import suppress
from typing import Any, TextIO

_READER_GONE = (errno.EPIPE, errno.EIO, errno.EINVAL)
"""What writing fails with when nobody reads: a closed pipe, a closed terminal; EINVAL: a closed pipe on Windows."""
_RETRY_SECONDS = 1.0


class ForgivingFile(io.RawIOBase):
    """A raw stream that drops what cannot be written, and remembers why."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
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

    def write(self, content: Any) -> int:
        """Write, or drop, all bytes that are given."""
        try:
            while (written := self._raw.write(content)) is None:  # another program made the terminal non-blocking
                select.select([], [self._raw], [], _RETRY_SECONDS)
            return written
        except OSError as error:
            if error.errno not in _READER_GONE:
                self.failure = error
            return len(content)


def forgiving(stream: TextIO) -> TextIO:
    """The same stream, for text that it may be unable to write: letters it lacks become escapes such as `\\xe9`."""
    buffer = getattr(stream, "buffer", None)
    unbuffered = isinstance(buffer, io.RawIOBase)  # python -u
    raw = buffer if unbuffered else getattr(buffer, "raw", None)
    if not isinstance(raw, io.RawIOBase):  # replaced by an embedding program
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(ForgivingFile(raw)),
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
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        kept_open = open(os.devnull, "w", encoding="utf-8") if stream is None else forgiving(stream)  # noqa: SIM115, PTH123
        setattr(sys, name, kept_open)


def lost_output() -> OSError | None:
    """Why a part of stdout could not be written while its reader may be waiting for it; None where all was."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, ForgivingFile) else None


def print_document(document: Any) -> None:
    """Print one JSON document on stdout: in ASCII, which every encoding can write."""
    print(json.dumps(document))
