"""The process in which MP3 is decoded: it reads files from stdin and writes their samples to stdout.

libsndfile decodes MP3 with libmpg123, which reports damage only by printing it to stderr. Here stderr is a file of this
process alone, so what was printed while a file was decoded is returned after its samples.

Protocol, in pickled objects: (bytes of a file, whether its samples are wanted) in; out come a dict of what the file
says about itself, the length of each block of samples, before its plain float32 bytes, and the log as a string. A
`DecodeError` at any point is the last object.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile

BLOCK_FRAMES = 1 << 15
DECODE_ERRORS = (soundfile.LibsndfileError, RuntimeError, TypeError)
_STDERR = 2


class DecodeError(Exception):
    """A file cannot be opened or decoded."""


class ForwardOnlySoundFile(soundfile.SoundFile):
    """A file that is read from start to end without seeking.

    soundfile seeks to the current position after each block. libmpg123 then decodes some frames again, but at low bit
    rates too few of the earlier frames that hold a part of the next one: after every block up to 0.44 of full scale was
    wrong.
    """

    def seekable(self) -> bool:
        """False for MPEG, where seeking does harm."""
        return not self.subtype.startswith("MPEG") and super().seekable()


class FileInMemory(io.BytesIO):
    """A file's bytes for libsndfile, which in a damaged file seeks to places before its beginning.

    An error raised there would be printed to the terminal, not raised; staying where it is, the file is found damaged.
    """

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place; stay where that is before the beginning."""
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


def error_text(error: Exception) -> str:
    """libsndfile's own message, without the address of the buffer that soundfile puts before it."""
    text = str(getattr(error, "error_string", "") or "").strip().rstrip(".")
    return text or "its content is damaged or is not audio"


def serve() -> None:
    """Decode file after file until stdin ends, which it does when the parent process ends."""
    # libsndfile takes a file `._` in the current folder for a part of any file whose kind it does not see at once.
    os.chdir(os.sep)
    while True:
        try:
            data, wants_samples = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        _take_log()
        for reply in _replies(data, wants_samples):
            is_block = isinstance(reply, np.ndarray)
            pickle.dump(len(reply) if is_block else reply, sys.stdout.buffer)
            if is_block:
                sys.stdout.buffer.write(reply.data)
        sys.stdout.buffer.flush()


def _replies(data: bytes, wants_samples: bool) -> Iterator[Any]:
    try:
        file = ForwardOnlySoundFile(FileInMemory(data))
        header = {name: getattr(file, name) for name in ("samplerate", "channels", "frames", "format", "subtype")}
        yield {**header, "tags": file.copy_metadata()}
        if wants_samples:
            buffer_XA = np.empty((BLOCK_FRAMES, file.channels), np.float32)
            while len(block_XA := file.read(out=buffer_XA)):
                yield block_XA
            yield _take_log()
    except DECODE_ERRORS as error:
        yield DecodeError(error_text(error))


def _take_log() -> str:
    """Return what was printed to stderr since the last call, and empty its file."""
    os.lseek(_STDERR, 0, os.SEEK_SET)
    text = os.read(_STDERR, 1 << 24)
    os.ftruncate(_STDERR, 0)
    os.lseek(_STDERR, 0, os.SEEK_SET)
    return text.decode("ascii", "replace")
