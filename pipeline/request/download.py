"""Downloads of http(s) URLs into the store: resumed, limited in size, checked, and named by content.

    <folder>/<sha256, 32 digits>.zip     a downloaded file
    <folder>/addresses/<key>.json        what a URL gave the last time, and the validators to ask whether it changed
    <folder>/addresses/<key>.part        an incomplete download; `.part.json` beside it holds its validators

Light: standard library only. Ranges and conditional requests follow RFC 9110 (sections 13 and 14).
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

from cache.files.atomic_files import atomic_write_bytes
from cache.fingerprint import digest_file
from pipeline.errors import FetchFailed
from pipeline.request.opener import opener
from stages.plural import moment
from stages.plural import size as in_words

_CHUNK_BYTES = 1 << 18
_MIN_BYTES_PER_TIMEOUT = 1 << 12
"""A server slower than this counts as stalled, even though it never times out."""
_RETRIED_STATUSES = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True, kw_only=True)
class Download:
    """One file to download."""

    field: str
    """The request's field, for messages."""
    url: str
    suffix: str
    max_bytes: int
    fault: Callable[[Path], str | None]
    """Says what is wrong with a downloaded file, or None."""
    sha256: str | None = None
    """The digest it must have, if last."""

    @property
    def key(self) -> str:
        """Name of the URL in the store; a URL may hold a secret signature, so it is not stored in the clear."""
        return hashlib.sha256(self.url.encode()).hexdigest()

    @property
    def shown(self) -> str:
        """The URL for messages, without user names, passwords and the query, which may be a secret."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}" + ("?..." if parts.query else "")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Time-out and number of attempts for a silent or failing server."""

    timeout_seconds: float = 30.0
    attempts: int = 5
    pause_seconds: float = 1.0
    """Before the second attempt; doubled before each further one."""


class _Retryable(Exception):
    """A failure that another attempt may not have."""


class _NoAnswer(_Retryable):
    """The address gave nothing at all: no network, no server, or an error instead of the file."""


@dataclass(kw_only=True)
class Downloader:
    """Downloads one file into a folder of the store."""

    download: Download
    folder: Path
    say: Callable[[str], None] = lambda line: None
    progress: Callable[..., None] = lambda done, total, note="", **figures: None
    digest: Callable[[Path], str] = digest_file
    """`sha256:<hex>` of a file in the folder; may be remembered for an unchanged one."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    def run(self) -> Path:
        """Download the file unless the store holds the current content of the URL; returns its path.

        What the URL gave before is used, and said, where it gives nothing now: a finished run is there offline too.

        Raises:
            FetchFailed: an incomplete download is kept for the next run, unless its content is wrong.
        """
        last = self._last_result()
        why = ""
        for attempt in range(self.retry.attempts):
            if attempt:
                self.say(f"{self.download.field}: {why}; retrying")
                time.sleep(self.retry.pause_seconds * 2 ** (attempt - 1))
            try:
                return self._attempt(last)
            except _Retryable as failure:
                why = str(failure)
                if last is not None and isinstance(failure, _NoAnswer) and not self._partial_file.is_file():
                    return self._as_before(last, f"gives nothing now ({why}); what it gave on {_day(last)} is used")
        size = self._partial_file.stat().st_size if self._partial_file.is_file() else 0
        kept = f"{in_words(size)} are kept. " if size else ""
        self._fail(f"{why} ({self.retry.attempts} attempts)", f"{kept}Run the same command again to resume.")

    def stored(self) -> Path | None:
        """What the URL gave the last time, without asking it."""
        last = self._last_result()
        return (
            None if last is None else self._as_before(last, f"taken as it was on {_day(last)}; a run asks the address")
        )

    def _last_result(self) -> dict[str, Any] | None:
        """What the URL gave the last time, if the store still holds the file, undamaged."""
        last = _read_json(self._result_file)
        digest = str(last.get("sha256", "")) if last else ""
        content = self._content(digest)
        if not digest or not content.is_file():
            return None
        if self.digest(content) != f"sha256:{digest}":
            self.say(f"{self.download.field}: {content} is damaged; it is downloaded again")
            return None
        return last

    def _attempt(self, last: dict[str, Any] | None) -> Path:
        """One request: a range where a partial file can be resumed, else conditional on the last result."""
        partial = _read_json(self._validators_file) if self._partial_file.is_file() else None
        condition = _if_range(partial) if partial else None
        start = self._partial_file.stat().st_size if condition else 0
        headers = {"User-Agent": "sa3-trainer", "Accept-Encoding": "identity"}
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": str(condition)}
        elif last:
            headers |= _if_changed(last)
        answered = False
        try:
            request = urllib.request.Request(self.download.url, headers=headers)
            with opener().open(request, timeout=self.retry.timeout_seconds) as response:
                answered = True
                self._receive(response, start, last)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 304 and last:
                return self._unchanged(last)
            self._raise_for_status(error, kept=last is not None)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._raise_for_failure(error, _Retryable if answered else _NoAnswer)
        return self._commit()

    def _unchanged(self, last: dict[str, Any]) -> Path:
        """The file in the store, after the server said that the URL still gives it."""
        return self._as_before(last, f"is unchanged since {_day(last)}; not downloaded again")

    def _as_before(self, last: dict[str, Any], words: str) -> Path:
        """The file in the store, and why it is used. Raises: FetchFailed, where another one is asked for."""
        self.say(f"{self.download.field}: {self.download.shown} {words}")
        content = self._content(last["sha256"])
        if self.download.sha256 not in (None, last["sha256"]):
            self._fail(f"its sha256 is {last['sha256']}, not {self.download.sha256}", _WRONG_DIGEST)
        return content

    def _raise_for_status(self, error: urllib.error.HTTPError, *, kept: bool) -> NoReturn:
        """Raise for an error status: retryable, or final; `kept`: the store has what the URL gave before."""
        if error.code == 416:
            self._discard_partial()
            raise _Retryable("the server no longer has the rest of the file")
        why = f"the server answers {error.code} {error.reason}"
        if error.code in _RETRIED_STATUSES or kept:
            raise _NoAnswer(why)
        self._fail(why, "Check the URL, and whether it has expired or needs a login.")

    def _raise_for_failure(self, error: Exception, kind: type[_Retryable]) -> NoReturn:
        """Raise for a failed connection: retryable, or final."""
        reason = getattr(error, "reason", error)
        if isinstance(error, http.client.InvalidURL | ValueError) or isinstance(reason, ssl.SSLCertVerificationError):
            self._fail(str(reason), "Check the URL.")
        if isinstance(reason, TimeoutError):
            raise kind(f"nothing was received for {self.retry.timeout_seconds:g} s") from error
        raise kind(f"the connection broke ({reason or type(reason).__name__})") from error

    def _receive(self, response: http.client.HTTPResponse, start: int, last: dict[str, Any] | None) -> None:
        """Append the response to the partial file, or start it over where the server sends the whole file."""
        if response.status == 206 and _range_start(response) != start:
            self._discard_partial()
            raise _Retryable("the server sent another range than the one requested")
        resumes = response.status == 206
        if start and not resumes:
            self.say(f"{self.download.field}: the file has changed, or the server cannot resume; starting over")
        elif resumes:
            self.say(f"{self.download.field}: resuming at {in_words(start)}")
        else:
            what = f"has changed since {moment(last['fetched'])}; downloading it again" if last else "downloading"
            self.say(f"{self.download.field}: {self.download.shown}: {what}")
        start = start if resumes else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        self._check_size(total or 0, start)
        validators = {"etag": response.headers.get("ETag"), "last_modified": response.headers.get("Last-Modified")}
        atomic_write_bytes(self._validators_file, json.dumps(validators).encode())
        self._copy(response, start, total)

    def _copy(self, response: http.client.HTTPResponse, start: int, total: int | None) -> None:
        """Write the body into the partial file from byte `start` on."""
        done, since, before = start, time.monotonic(), start
        with self._partial_file.open("r+b" if start else "wb") as file:
            file.truncate(start)
            file.seek(start)
            while chunk := response.read1(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                self._check_size(done, done)
                self.progress(done, max(total or 0, done), bytes_done=done, bytes_total=max(total or 0, done))
                if time.monotonic() - since > self.retry.timeout_seconds:
                    if done - before < _MIN_BYTES_PER_TIMEOUT:
                        raise _Retryable(
                            f"only {done - before:,} bytes were received in {self.retry.timeout_seconds:g} s"
                        )
                    since, before = time.monotonic(), done
        if total is not None and done < total:
            raise _Retryable(f"the connection ended after {done:,} of {total:,} bytes")

    def _check_size(self, num_bytes: int, num_received: int) -> None:
        """Fail when the file is larger than allowed, or than the free disk space."""
        if num_bytes > self.download.max_bytes:
            self._discard_partial()
            limit = f"over the limit of {in_words(self.download.max_bytes)}"
            self._fail(f"it is {in_words(num_bytes)} or more, {limit}", "Raise the limit if this is the right file.")
        free = shutil.disk_usage(self.folder).free
        if num_bytes - num_received > free:
            self._fail(
                f"it needs {in_words(num_bytes - num_received)} more and {in_words(free)} are free in {self.folder}",
                "Free some disk space.",
            )

    def _commit(self) -> Path:
        """Check the complete file, name it by content, and record what the URL gave."""
        with self._partial_file.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        validators = _read_json(self._validators_file) or {}
        if self.download.sha256 not in (None, digest):
            self._discard_partial()
            self._fail(f"its sha256 is {digest}, not {self.download.sha256}; it was not kept", _WRONG_DIGEST)
        if wrong := self.download.fault(self._partial_file):
            self._discard_partial()
            self._fail(
                f"the downloaded file {wrong}; it was not kept", "Open the URL in a browser to see what it gives."
            )
        num_bytes = self._partial_file.stat().st_size
        self._partial_file.replace(self._content(digest))
        fetched = datetime.now(UTC).isoformat(timespec="seconds")
        result = {"sha256": digest, "num_bytes": num_bytes, "fetched": fetched, **validators}
        atomic_write_bytes(self._result_file, json.dumps(result).encode())
        self._discard_partial()
        return self._content(digest)

    def _content(self, digest: str) -> Path:
        return self.folder / f"{digest[:32]}{self.download.suffix}"

    @property
    def _result_file(self) -> Path:
        return self.folder / "addresses" / f"{self.download.key[:32]}.json"

    @property
    def _partial_file(self) -> Path:
        return self._result_file.with_suffix(".part")

    @property
    def _validators_file(self) -> Path:
        return self._result_file.with_suffix(".part.json")

    def _discard_partial(self) -> None:
        for path in (self._partial_file, self._validators_file):
            with suppress(FileNotFoundError):
                path.unlink()

    def _fail(self, why: str, remedy: str) -> NoReturn:
        raise FetchFailed(self.download.field, self.download.shown, why, remedy)


_WRONG_DIGEST = "Ask whoever gave you the URL which of the two is right."


def _day(last: dict[str, Any]) -> str:
    return moment(str(last["fetched"]))


def _read_json(file: Path) -> dict[str, Any] | None:
    """A JSON object of the store; None when it is missing or damaged."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _if_range(validators: dict[str, Any]) -> str | None:
    """Validator for If-Range; a weak ETag does not promise the same bytes, so it is not used."""
    etag = validators.get("etag")
    return etag if etag and not etag.startswith("W/") else validators.get("last_modified")


def _if_changed(validators: dict[str, Any]) -> dict[str, str]:
    """Headers of a conditional request."""
    names = {"If-None-Match": validators.get("etag"), "If-Modified-Since": validators.get("last_modified")}
    return {name: value for name, value in names.items() if value}


def _range_start(response: http.client.HTTPResponse) -> int | None:
    """First byte of a partial response, from `Content-Range: bytes 100-199/200`."""
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else None
