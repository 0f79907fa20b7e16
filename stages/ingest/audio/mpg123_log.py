"""What the MP3 decoder complains about while it decodes: heard, not printed.

libsndfile decodes MP3 with libmpg123, which prints to C's `stderr` and tells nobody else: libsndfile's own log has
none of it. For the time of one call that variable, which glibc lets a program assign (its manual, 12.2), names a stream
in memory. File descriptor 2 is left alone: Python, and processes begun meanwhile, write where they always did, and it
may be closed. What other code writes through C's `stderr` meanwhile is passed on.

With other C libraries (macOS, Windows, musl) nothing is heard and the lines are printed.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

_LINE = re.compile(
    rb"\[[^\[\]\n]*libmpg123/(?P<file>\w+)\.\w+:[^\]\n]*\] (?:error|warning): (?P<words>[^\n]*)\n"
    rb"|\n?(?:Note|Warning): (?P<plain>(?:Illegal Audio-MPEG|Trying to resync|Could be a BMP|Hit end of|Skipped \d|"
    rb"Xing stream size|Encountered more data|Big change|Real sample count)[^\n]*)\n"
)
"""A line of libmpg123's, wherever it begins: another's unfinished line may come before it."""
_ABOUT_TAGS = b"id3"
"""The source file whose complaints are not about sound."""
_NO_DAMAGE = re.compile(rb"Illegal Audio|Trying to|Could be|Hit end of|Xing stream")
"""What sound files lead to as well: a foreign tag behind them, a careless header."""
_ONE_AT_A_TIME = threading.RLock()
"""Whoever holds it hears: the variable is the whole process's."""


class Complaints:
    """Of the decoder, about one recording."""

    def __init__(self) -> None:
        self._words: Counter[str] = Counter()

    @property
    def number(self) -> int:
        """How many there were about damage."""
        return self._words.total()

    @property
    def example(self) -> str:
        """The most frequent one; nothing where there is none."""
        return next((words for words, _ in self._words.most_common(1)), "")

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Within, which should be one call into the decoder, its complaints are counted and not printed."""
        ear = _ear()
        if ear is None:
            yield
            return
        with _ONE_AT_A_TIME:
            try:
                with ear.listening():
                    yield
            finally:
                ear.pass_on(_LINE.sub(self._count, ear.taken()))

    def _count(self, line: re.Match[bytes]) -> bytes:
        """Note one line of the decoder's; nothing is left of it."""
        words: bytes = line["words"] or line["plain"] or b""
        if line["file"] != _ABOUT_TAGS and not _NO_DAMAGE.match(words):
            self._words[words.decode("ascii", "replace").strip(" .!")] += 1
        return b""


class _Ear:
    """C's `stderr`, and a stream in memory to put in its place. The stream lasts: somebody may still hold it."""

    def __init__(self, libc: ctypes.CDLL) -> None:
        self._libc = libc
        self._stderr = ctypes.c_void_p.in_dll(libc, "stderr")
        self._text, self._size = ctypes.c_void_p(), ctypes.c_size_t()
        libc.open_memstream.restype = ctypes.c_void_p
        self._memory = ctypes.c_void_p(libc.open_memstream(ctypes.byref(self._text), ctypes.byref(self._size)))
        if not self._memory:
            raise MemoryError

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = self._stderr.value
        try:
            self._stderr.value = self._memory.value
            yield
        finally:
            self._stderr.value = before

    def taken(self) -> bytes:
        """All that was written since it was last asked for."""
        self._libc.flockfile(self._memory)  # a line that another thread is in the middle of comes whole, or next time
        try:
            self._libc.fflush(self._memory)
            text = ctypes.string_at(self._text, self._size.value)
            self._libc.rewind(self._memory)
            return text
        finally:
            self._libc.funlockfile(self._memory)

    def pass_on(self, text: bytes) -> None:
        """Write what is not the decoder's where it was meant to go."""
        if text:
            self._libc.fwrite(text, ctypes.c_size_t(1), ctypes.c_size_t(len(text)), self._stderr)


@lru_cache
def _ear() -> _Ear | None:
    """The process's only one; None where C's `stderr` cannot be assigned."""
    try:
        libc = ctypes.CDLL(None)
        _ = libc.gnu_get_libc_version  # musl's stderr is a constant
        ear = _Ear(libc)
    except (OSError, TypeError, AttributeError, ValueError, MemoryError):
        return None
    atexit.register(lambda: ear.pass_on(ear.taken()))  # of others, what came too late for the last call
    # A process forked in the middle would keep the stream in memory, and a lock that nobody opens.
    os.register_at_fork(
        before=_ONE_AT_A_TIME.acquire,
        after_in_parent=_ONE_AT_A_TIME.release,
        after_in_child=_ONE_AT_A_TIME.release,
    )
    return ear
