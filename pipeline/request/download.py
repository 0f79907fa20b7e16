"""Files at http(s) addresses, fetched into the store: resumed, bounded, checked, kept by content.

    <folder>/<sha256, 32 digits>.zip     content, whole; what an address led to once
    <folder>/addresses/<key>.json        what an address led to last, and how to ask whether it still does
    <folder>/addresses/<key>.part        what has come so far; `.part.json` beside it names the version it is of

Light: standard library only. Ranges and their conditions are those of RFC 9110 (13 and 14).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from cache.atomic_files import atomic_write_bytes
from pipeline.errors import FetchFailed
from pipeline.request.redirects import opener

_CHUNK_BYTES = 1 << 18
_SLOWEST_BYTES = 1 << 12
"""Per time-out, at least: a server that drips byte by byte counts as stalled."""
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for."""

    field: str
    """The request's field, for messages."""
    url: str
    suffix: str
    max_bytes: int
    fault: Callable[[Path], str | None]
    """Says what is wrong with a fetched file, or None."""
    sha256: str | None = None

    @property
    def key(self) -> str:
        """Name of the address; it may hold a signature, so it is not kept in the clear."""
        return hashlib.sha256(self.url.encode()).hexdigest()

    @property
    def shown(self) -> str:
        """The address for messages: what follows `?` may be a secret."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}" + ("?..." if parts.query else "")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a silent or failing server is waited for."""

    timeout_seconds: float = 30.0
    attempts: int = 5
    pause_seconds: float = 1.0
    """Before the second attempt; doubled before each further one."""


class _Broken(Exception):
    """The connection failed in a way that another attempt may mend."""


@dataclass(kw_only=True)
class Fetch:
    """One address on its way into the store."""

    wanted: Wanted
    folder: Path
    say: Callable[[str], None] = lambda line: None
    progress: Callable[..., None] = lambda done, total, note="": None
    patience: Patience = field(default_factory=Patience)

    def file(self) -> Path:
        """The content, fetched unless the store holds what the address leads to.

        Raises:
            FetchFailed: what came so far is kept for the next run, unless it is wrong.
        """
        known = self._known()
        why = ""
        for attempt in range(self.patience.attempts):
            if attempt:
                self.say(f"{self.wanted.field}: {why}; trying again")
                time.sleep(self.patience.pause_seconds * 2 ** (attempt - 1))
            try:
                return self._attempt(known)
            except _Broken as broken:
                why = str(broken)
        size = self._part.stat().st_size if self._part.is_file() else 0
        kept = f"{size:,} bytes of it are kept. " if size else ""
        self._fail(f"{why}, {self.patience.attempts} times over", f"{kept}Run the same command again to go on.")

    def _known(self) -> dict[str, Any] | None:
        """What the address led to the last time, if the store still holds it."""
        known = _read(self._facts)
        if known is None or not self._content(known["sha256"]).is_file():
            return None
        return known if self._content(known["sha256"]).stat().st_size == known["num_bytes"] else None

    def _attempt(self, known: dict[str, Any] | None) -> Path:
        part = _read(self._part_facts) if self._part.is_file() else None
        condition = _if_range(part) if part else None
        start = self._part.stat().st_size if condition else 0
        headers = {"User-Agent": "sa3-trainer", "Accept-Encoding": "identity"}
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": str(condition)}
        elif known:
            headers |= _if_changed(known)
        try:
            request = urllib.request.Request(self.wanted.url, headers=headers)
            with opener().open(request, timeout=self.patience.timeout_seconds) as response:
                self._receive(response, start, known)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 304 and known:
                return self._unchanged(known)
            self._refused(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._broken(error)
        return self._finished()

    def _unchanged(self, known: dict[str, Any]) -> Path:
        self.say(f"{self.wanted.field}: {self.wanted.shown} is what it was on {known['fetched']}; not fetched again")
        content = self._content(known["sha256"])
        if self.wanted.sha256 not in (None, known["sha256"]):
            self._fail(f"its sha256 is {known['sha256']}, not {self.wanted.sha256}", _ASK)
        return content

    def _refused(self, error: urllib.error.HTTPError) -> NoReturn:
        if error.code == 416:
            self._forget_part()
            raise _Broken("the server does not have the rest of what came before")
        words = f"the server answers {error.code} {error.reason}"
        if error.code in _TRY_AGAIN:
            raise _Broken(words)
        self._fail(words, "Check the address, and whether it has expired or needs a login.")

    def _broken(self, error: Exception) -> NoReturn:
        reason = getattr(error, "reason", error)
        if isinstance(error, http.client.InvalidURL | ValueError) or isinstance(reason, ssl.SSLCertVerificationError):
            self._fail(str(reason), "Check the address.")
        if isinstance(reason, TimeoutError):
            raise _Broken(f"nothing came for {self.patience.timeout_seconds:g} s") from error
        raise _Broken(f"the connection broke ({reason or type(reason).__name__})") from error

    def _receive(self, response: http.client.HTTPResponse, start: int, known: dict[str, Any] | None) -> None:
        """Write what comes behind what there is."""
        if response.status == 206 and _range_start(response) != start:
            self._forget_part()
            raise _Broken("the server sent another part than was asked for")
        resumes = response.status == 206
        if start and not resumes:
            self.say(f"{self.wanted.field}: the file has changed, or the server cannot resume; from the beginning")
        elif resumes:
            self.say(f"{self.wanted.field}: going on at {start:,} bytes")
        else:
            again = f"has changed since {known['fetched']}; fetching it again" if known else "fetching"
            self.say(f"{self.wanted.field}: {self.wanted.shown}: {again}")
        start = start if resumes else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        self._check_size(total or 0, start)
        version = {"etag": response.headers.get("ETag"), "last_modified": response.headers.get("Last-Modified")}
        atomic_write_bytes(self._part_facts, json.dumps(version).encode())
        self._copy(response, start, total)

    def _copy(self, response: http.client.HTTPResponse, start: int, total: int | None) -> None:
        done, since, before = start, time.monotonic(), start
        with self._part.open("r+b" if start else "wb") as file:
            file.truncate(start)
            file.seek(start)
            while chunk := response.read1(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                self._check_size(done, done)
                self.progress(done, max(total or 0, done), "bytes")
                if time.monotonic() - since > self.patience.timeout_seconds:
                    if done - before < _SLOWEST_BYTES:
                        raise _Broken(f"only {done - before:,} bytes came in {self.patience.timeout_seconds:g} s")
                    since, before = time.monotonic(), done
        if total is not None and done < total:
            raise _Broken(f"the connection ended after {done:,} of {total:,} bytes")

    def _check_size(self, num_bytes: int, there: int) -> None:
        if num_bytes > self.wanted.max_bytes:
            self._forget_part()
            limit = f"over the limit of {self.wanted.max_bytes:,} bytes"
            self._fail(f"it is {num_bytes:,} bytes or more, {limit}", "Raise the limit if it is what you want.")
        free = shutil.disk_usage(self.folder).free
        if num_bytes - there > free:
            self._fail(
                f"it needs {num_bytes - there:,} bytes more and {free:,} are free in {self.folder}", "Make room."
            )

    def _finished(self) -> Path:
        """Check the whole file, give it its name by content, and note what the address led to."""
        with self._part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        version = _read(self._part_facts) or {}
        if self.wanted.sha256 not in (None, digest):
            self._forget_part()
            self._fail(f"its sha256 is {digest}, not {self.wanted.sha256}; it was not kept", _ASK)
        if wrong := self.wanted.fault(self._part):
            self._forget_part()
            self._fail(f"what came {wrong}; it was not kept", "Open the address in a browser to see what it leads to.")
        num_bytes = self._part.stat().st_size
        self._part.replace(self._content(digest))
        fetched = datetime.now(UTC).isoformat(timespec="seconds")
        facts = {"sha256": digest, "num_bytes": num_bytes, "fetched": fetched, **version}
        atomic_write_bytes(self._facts, json.dumps(facts).encode())
        self._forget_part()
        return self._content(digest)

    def _content(self, digest: str) -> Path:
        return self.folder / f"{digest[:32]}{self.wanted.suffix}"

    @property
    def _facts(self) -> Path:
        return self.folder / "addresses" / f"{self.wanted.key[:32]}.json"

    @property
    def _part(self) -> Path:
        return self._facts.with_suffix(".part")

    @property
    def _part_facts(self) -> Path:
        return self._facts.with_suffix(".part.json")

    def _forget_part(self) -> None:
        for path in (self._part, self._part_facts):
            with suppress(FileNotFoundError):
                path.unlink()

    def _fail(self, why: str, remedy: str) -> NoReturn:
        raise FetchFailed(self.wanted.field, self.wanted.shown, why, remedy)


_ASK = "Ask whoever gave you the address which of the two is right."


def _read(file: Path) -> dict[str, Any] | None:
    """A small JSON object of ours; None when it is not there or not whole."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _if_range(version: dict[str, Any]) -> str | None:
    """What the rest must belong to; a weak tag does not promise the same bytes."""
    etag = version.get("etag")
    return etag if etag and not etag.startswith("W/") else version.get("last_modified")


def _if_changed(version: dict[str, Any]) -> dict[str, str]:
    names = {"If-None-Match": version.get("etag"), "If-Modified-Since": version.get("last_modified")}
    return {name: value for name, value in names.items() if value}


def _range_start(response: http.client.HTTPResponse) -> int | None:
    """First byte of a partial answer, from `Content-Range: bytes 100-199/200`."""
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else None
