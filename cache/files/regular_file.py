"""Reads small files of a store, where a folder, a pipe or a link in a circle may lie in their place.

Light: standard library only.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class NotRegularFile(OSError):
    """Something lies in place of a file; the message says what."""

    def __init__(self, file: Path, what: str) -> None:
        self.what = what
        super().__init__(errno.EISDIR, what, str(file))


def read_regular(file: Path) -> bytes:
    """The bytes of a file. A pipe in its place, for which a reader would wait for ever, is not opened for long.

    Raises:
        NotRegularFile: a folder, a pipe or a link in a circle is in its place.
        OSError: it is not there, or cannot be read.
    """
    try:
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise NotRegularFile(file, "it is a link in a circle") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise NotRegularFile(file, "it is a folder" if stat.S_ISDIR(mode) else "it is no regular file")
    with os.fdopen(handle, "rb") as opened:
        return opened.read()
