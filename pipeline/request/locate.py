"""Finds the data and the adapter file of a request: paths, file://, data: and http(s) URLs. Light: no arrays."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache.digest_cache import DigestCache
from cache.files.atomic_files import atomic_write_bytes
from cache.store import Store
from pipeline.errors import FieldError, RecipeError, SourceNotFound
from pipeline.request.download import Download, Downloader
from pipeline.request.paths import (
    GIVE_CHECKPOINT,
    GIVE_DATA,
    NO_CHECKPOINT,
    NO_DATA,
    adapter_suffix,
    is_url,
    local_path,
)
from pipeline.request.recipe import Recipe
from pipeline.waited_lock import waited_lock
from stages.adapters.adapter_header import NotAnAdapterFile, read_adapter_header
from stages.errors import SourceUnreadable
from stages.ingest.source.archive import opened_zip

Located = tuple[Path | None, str]
"""The local file or folder; or None, and why it is not known yet."""


@dataclass(frozen=True, kw_only=True)
class InputLocator:
    """Finds the files of one recipe, and downloads those that are URLs."""

    recipe: Recipe
    digest_cache: DigestCache
    fetch: bool
    """Download URLs and write data: zips into the store; plan does neither."""
    say: Callable[[str], None]
    progress: Callable[..., None]

    def audio(self) -> Located:
        """The zip or folder of the dataset.

        Raises:
            SourceNotFound, FetchFailed, RecipeError: it does not exist, or its digest is not audio_sha256.
        """
        text, digest = self.recipe.source, _digest(self.recipe.values["audio_sha256"])
        if is_url(text):
            limit = self.recipe.values["max_total_bytes"]
            download = Download(
                field="audio_data_url", url=text, suffix=".zip", max_bytes=limit, fault=_zip_fault, sha256=digest
            )
            return self._downloaded(download)
        if text.startswith("data:"):
            return self._data(text, digest)
        path = local_path(text)
        if not path.exists():
            raise SourceNotFound(text, NO_DATA, GIVE_DATA)
        self._check_digest("audio_sha256", path, digest)
        return path, ""

    def lora(self) -> Located:
        """The adapter file to continue from, if the recipe names one. Raises: as `audio`."""
        given, digest = self.recipe.values["lora_checkpoint_url"], _digest(self.recipe.values["lora_checkpoint_sha256"])
        if given is None:
            return None, ""
        if is_url(given):
            limit = self.recipe.values["max_member_bytes"]
            download = Download(
                field="lora_checkpoint_url",
                url=given,
                suffix=adapter_suffix(given),
                max_bytes=limit,
                fault=_lora_fault,
                sha256=digest,
            )
            return self._downloaded(download)
        path = local_path(given)
        if not path.is_file():
            raise SourceNotFound(f"lora_checkpoint_url {given}", NO_CHECKPOINT, GIVE_CHECKPOINT)
        self._check_digest("lora_checkpoint_sha256", path, digest)
        return path, ""

    @property
    def _folder(self) -> Path:
        return self.recipe.store / "shared" / "sources"

    def _downloaded(self, download: Download) -> Located:
        """The file of a URL: from the store by its digest, else downloaded where that is allowed."""
        stored = self._stored(download.sha256, download.suffix)
        if stored is not None:
            self.say(f"{download.field}: the store has the file of this sha256; {download.shown} is not downloaded")
            return stored, ""
        downloader = Downloader(download=download, folder=self._folder, digest=self.digest_cache.digest)
        downloader.say, downloader.progress = self.say, self.progress
        if not self.fetch:
            last = downloader.stored()
            return last, "" if last else f"unknown until fetched: {download.shown}"
        self._folder.mkdir(parents=True, exist_ok=True)
        with waited_lock(Store(self.recipe.store), "fetch", download.key, "downloading the same address", self.say):
            return downloader.run(), ""

    def _stored(self, digest: str | None, suffix: str) -> Path | None:
        """The file of this digest, if the store has it undamaged."""
        path = self._folder / f"{(digest or '')[:32]}{suffix}"
        if digest is None or not path.is_file():
            return None
        return path if self.digest_cache.digest(path) == f"sha256:{digest}" else None

    def _data(self, text: str, digest: str | None) -> Located:
        """The zip inside a data: URL, written into the store and named by content."""
        head, _, body = text.partition(",")
        if head not in ("data:application/zip;base64", "data:application/x-zip-compressed;base64"):
            raise SourceNotFound(head[:80], "a data: URL must begin with data:application/zip;base64,", GIVE_DATA)
        try:
            content = base64.b64decode(body, validate=True)
        except ValueError as error:
            raise SourceNotFound(head, f"the base64 is damaged ({error})", GIVE_DATA) from error
        found = hashlib.sha256(content).hexdigest()
        if digest not in (None, found):
            raise _wrong_digest("audio_sha256", found)
        path = self._folder / f"{found[:32]}.zip"
        if not path.is_file() or self.digest_cache.digest(path) != f"sha256:{found}":
            if not self.fetch:
                return None, "unknown until it is run: plan does not write the data: zip into the store"
            atomic_write_bytes(path, content)
        return path, ""

    def _check_digest(self, field: str, path: Path, digest: str | None) -> None:
        """Compare a local file with the digest of the request. Raises: RecipeError."""
        if digest is None:
            return
        if not path.is_file():
            raise RecipeError([FieldError(loc=(field,), type="not_a_file", msg=f"{path} is a folder; it has none")])
        found = self.digest_cache.digest(path).removeprefix("sha256:")
        if found != digest:
            raise _wrong_digest(field, found)


def _wrong_digest(field: str, found: str) -> RecipeError:
    return RecipeError([FieldError(loc=(field,), type="digest_mismatch", msg=f"the file's sha256 is {found}")])


def _digest(given: str | None) -> str | None:
    """64 lower-case hex digits."""
    return given.lower().removeprefix("sha256:") if given else None


def _zip_fault(path: Path) -> str | None:
    try:
        with opened_zip(path):
            return None
    except SourceUnreadable as error:
        return f"is not usable: {error.why}"


def _lora_fault(path: Path) -> str | None:
    try:
        read_adapter_header(path)
    except NotAnAdapterFile as error:
        return f"is not an adapter that can be read: {error}"
    return None
