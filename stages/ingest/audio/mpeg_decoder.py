"""MP3 decoded by processes of its own, and what the decoder reported about damage.

libmpg123 prints what it finds wrong to stderr and returns the samples all the same. A process of its own
(`mpeg_process`) keeps those lines off the terminal and tells which file each of them is about.
"""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tempfile
import weakref
from collections import Counter
from contextlib import suppress
from typing import Any

import numpy as np

from stages.errors import StageError
from stages.ingest.audio.mpeg_process import DecodeError
from stages.ingest.faults import FileRejected
from stages.ingest.integrity.chunks import wave_format_tag

_NOT_MPEG = (b"OggS", b"fLaC", b"caff", b".snd", b"dns.", b"riff")
_FORMS = {b"AIFF", b"AIFC", b"8SVX", b"16SV"}
"""Kinds of IFF files that libsndfile recognises."""
_MPEG_FORMATS = (0x50, 0x55)
"""WAVE format tags of MPEG layers I and II, and of layer III."""
_LINE = re.compile(
    r"(?:\[[^\[\]]*libmpg123/(?P<file>\w+)\.\w+:[^\]]*\] (?:error|warning): |Note: |Warning: )?(?P<text>.*)"
)
_ABOUT_TAGS = "id3"
"""The source file of libmpg123 whose complaints are not about audio."""
_NO_DAMAGE = ("Illegal Audio", "Trying to", "Could be", "Hit end of", "Xing stream")
"""Reports that undamaged files cause as well: about a foreign tag after the audio, or a careless header."""
_idle: list[_DecoderProcess] = []
"""Processes that wait for the next file."""


class DecoderEnded(StageError):
    """A process that decodes MP3s ended before it was done: killed, out of memory, or by a fault in the decoder."""


def may_be_mpeg(data: bytes) -> bool:
    """False where libsndfile certainly recognises the file, and does not use libmpg123.

    What it does not recognise is left to the other process as well: in the current folder, libsndfile would take files
    such as `._` for a part of it, and reject it for what is wrong with them.
    """
    kind = data[8:12]
    if data.startswith((b"RIFF", b"RIFX")):
        return wave_format_tag(data) in _MPEG_FORMATS if kind == b"WAVE" else True
    if data.startswith((b"RF64", b"BW64")):
        return kind != b"WAVE"
    return kind not in _FORMS if data.startswith(b"FORM") else not data.startswith(_NOT_MPEG)


def start_decoder() -> None:
    """Start a process for the files to come: its imports take a tenth of a second."""
    _idle.append(_DecoderProcess())


def end_idle_decoders() -> None:
    """End this process's decoder processes, also those that an error or a recording that is kept still refers to."""
    while _idle:
        _idle.pop().end()


def mpeg_tags(data: bytes) -> dict[str, str]:
    """The tags that libsndfile finds in a file.

    Raises:
        FileRejected: `audio_decode_error`.
    """
    process = _idle_or_new()
    process.send(data, wants_samples=False)
    tags: dict[str, str] = process.receive()["tags"]
    _idle.append(process)
    return tags


class MpegFile:
    """An MP3 in memory, in any container: the properties of `soundfile.SoundFile`, and its samples once.

    Raises:
        FileRejected: `audio_decode_error`.
    """

    def __init__(self, data: bytes) -> None:
        self.complaints: Counter[str] = Counter()
        """What the decoder reported about damage, once all samples are read."""
        self._process = _idle_or_new()
        self._process.send(data, wants_samples=True)
        header = self._process.receive()
        self.samplerate: int = header["samplerate"]
        self.channels: int = header["channels"]
        self.frames: int = header["frames"]
        self.format: str = header["format"]
        self.subtype: str = header["subtype"]

    def read_block(self) -> np.ndarray:
        """(X, A) float32; X is 0 at the end, and only there.

        Raises:
            FileRejected: `audio_decode_error`.
        """
        reply = self._process.receive()
        if isinstance(reply, int):
            return self._process.receive_block(reply, self.channels)
        self.complaints.update(damage_reports(reply))
        _idle.append(self._process)
        return np.empty((0, self.channels), np.float32)


def damage_reports(log: str) -> list[str]:
    """The lines of a decoder's log about damaged audio, without the place in libmpg123 that they name."""
    reports = []
    for line in log.splitlines():
        found = _LINE.match(line)
        assert found is not None, "the pattern matches any line"
        if found["text"] and found["file"] != _ABOUT_TAGS and not found["text"].startswith(_NO_DAMAGE):
            reports.append(found["text"].strip(" .!"))
    return reports


def _idle_or_new() -> _DecoderProcess:
    try:
        return _idle.pop()
    except IndexError:
        return _DecoderProcess()


class _DecoderProcess:
    """One process that decodes a file at a time; it ends when nothing refers to it, or with this process."""

    def __init__(self) -> None:
        # A service manager or batch system sends its SIGTERM to every process: only the one that asks reacts.
        code = (
            "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
            f"sys.path[:] = {sys.path}; from stages.ingest.audio.mpeg_process import serve; serve()"
        )
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # a terminal's Ctrl-C is for the process that asks
        )
        self.end = weakref.finalize(self, _end, self._process)

    def send(self, data: bytes, *, wants_samples: bool) -> None:
        """Ask for what a file says about itself, and for its samples."""
        assert self._process.stdin is not None
        try:
            pickle.dump((data, wants_samples), self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def receive(self) -> Any:
        """The next reply.

        Raises:
            FileRejected: `audio_decode_error`.
            DecoderEnded: there is none.
        """
        assert self._process.stdout is not None
        try:
            reply = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise self._ended() from None
        if isinstance(reply, DecodeError):
            _idle.append(self)
            raise FileRejected("audio_decode_error", why=str(reply))
        return reply

    def receive_block(self, num_frames: int, num_channels: int) -> np.ndarray:
        """(num_frames, num_channels) float32: the samples that follow their number."""
        assert self._process.stdout is not None
        block_XA = np.empty((num_frames, num_channels), np.float32)
        if self._process.stdout.readinto(block_XA.data) < block_XA.nbytes:  # type: ignore[attr-defined]
            raise self._ended()
        return block_XA

    def _ended(self) -> DecoderEnded:
        self._process.kill()
        status = self._process.wait()
        self._log.seek(0)
        last_line = self._log.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
        return DecoderEnded(
            f"the process that decodes MP3s was killed or ran out of memory ({last_line or f'exit code {status}'}). "
            "Finished clips are kept. Run the same command again with --workers 1; if it ends here again, convert this "
            "file to WAV or FLAC."
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # it has nothing to lose
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(BrokenPipeError):  # of a request that was not read to its end
            if pipe is not None:
                pipe.close()
