"""The process in which MP3 is decoded: it reads files from stdin and writes their samples to stdout.

libsndfile decodes MP3 with libmpg123, which reports damage only by printing it to stderr. Here stderr is a file of this
process alone, so what was printed while a file was decoded is returned after its samples.

Protocol, per file: `REQUEST` and the file's bytes in; out come a line of JSON about the file, blocks of float32
samples, each after its number of frames and the last with none, and a line of JSON with the log and the error.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
from typing import BinaryIO

import soundfile

REQUEST = struct.Struct("<Q?")
"""Bytes of the file; whether its samples are wanted, or only what its header says."""
FRAMES = struct.Struct("<Q")
BLOCK_FRAMES = 1 << 15
OPEN_ERRORS = (soundfile.LibsndfileError, RuntimeError, TypeError)
READ_ERRORS = (soundfile.LibsndfileError, RuntimeError)
_STDERR = 2


class ForwardOnlySoundFile(soundfile.SoundFile):
    """A file that is read from start to end without seeking.

    soundfile seeks to the current position after each block. libmpg123 then decodes some frames again, but at low bit
    rates too few of the earlier frames that hold a part of the next one: after every block up to 0.44 of full scale was
    wrong.
    """

    def seekable(self) -> bool:
        """False for MPEG, where seeking does harm."""
        return not self.subtype.startswith("MPEG") and super().seekable()


def error_text(error: Exception) -> str:
    """libsndfile's own message, without the address of the buffer that soundfile puts before it."""
    text = str(getattr(error, "error_string", "") or "").strip().rstrip(".")
    return text or "its content is damaged or is not audio"


def serve() -> None:
    """Decode file after file until stdin ends: it ends with the process that asks."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while head := requests.read(REQUEST.size):
        num_bytes, wants_samples = REQUEST.unpack(head)
        _take_log()
        _answer(requests.read(num_bytes), wants_samples, replies)
        replies.flush()


def _answer(data: bytes, wants_samples: bool, replies: BinaryIO) -> None:
    try:
        file = ForwardOnlySoundFile(io.BytesIO(data))
    except OPEN_ERRORS as error:
        _write_line(replies, {"error": error_text(error)})
        return
    header = {name: getattr(file, name) for name in ("samplerate", "channels", "frames", "format", "subtype")}
    _write_line(replies, {"error": None, "header": header, "tags": file.copy_metadata()})
    if wants_samples:
        replies.flush()
        error_message = _write_samples(file, replies)
        _write_line(replies, {"error": error_message, "log": _take_log()})


def _write_samples(file: soundfile.SoundFile, replies: BinaryIO) -> str | None:
    """Write all blocks and the empty one after them; return the error that ended them early, if any."""
    buffer = bytearray(BLOCK_FRAMES * file.channels * 4)
    error_message = None
    num_frames = 1
    while num_frames:
        try:
            num_frames = file.buffer_read_into(buffer, dtype="float32")
        except READ_ERRORS as error:
            num_frames, error_message = 0, error_text(error)
        replies.write(FRAMES.pack(num_frames))
        replies.write(memoryview(buffer)[: num_frames * file.channels * 4])
    return error_message


def _write_line(replies: BinaryIO, content: object) -> None:
    replies.write(json.dumps(content).encode() + b"\n")


def _take_log() -> str:
    """Return what was printed to stderr since the last call, and empty its file."""
    os.lseek(_STDERR, 0, os.SEEK_SET)
    text = os.read(_STDERR, 1 << 24)
    os.ftruncate(_STDERR, 0)
    os.lseek(_STDERR, 0, os.SEEK_SET)
    return text.decode("ascii", "replace")
