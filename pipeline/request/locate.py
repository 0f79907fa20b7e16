"""Where the files a request names lie on this disk: paths, file://, data: and http(s) addresses."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache.atomic_files import atomic_write_bytes
from cache.digest_cache import DigestCache
from cache.store import Store
from pipeline.errors import FieldError, RecipeError, SourceNotFound
from pipeline.request.download import Fetch, Wanted
from pipeline.request.paths import GIVE_CHECKPOINT, GIVE_DATA, NO_CHECKPOINT, NO_DATA, is_address, local_path
from pipeline.request.recipe import Recipe
from stages.errors import SourceUnreadable
from stages.ingest.source.archive import opened_zip
from stages.safetensors_header import NotSafetensors, read_header

Place = tuple[Path | None, str]
"""The file or folder, or None and why it is not known yet."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Finds, and fetches if it may."""

    recipe: Recipe
    digest_cache: DigestCache
    make: bool
    """Fetch addresses and write data: zips into the store; a plan does neither."""
    say: Callable[[str], None]
    progress: Callable[..., None]

    def audio(self) -> Place:
        """The zip or folder of the dataset.

        Raises:
            SourceNotFound, FetchFailed, RecipeError: nothing there, or not what audio_sha256 says.
        """
        text, digest = self.recipe.source, _digest(self.recipe.values["audio_sha256"])
        if is_address(text):
            limit = self.recipe.values["max_total_bytes"]
            wanted = Wanted(
                field="audio_data_url", url=text, suffix=".zip", max_bytes=limit, fault=_zip_fault, sha256=digest
            )
            return self._fetched(wanted)
        if text.startswith("data:"):
            return self._data(text, digest)
        path = local_path(text)
        if not path.exists():
            raise SourceNotFound(text, NO_DATA, GIVE_DATA)
        self._check_digest("audio_sha256", path, digest)
        return path, ""

    def lora(self) -> Place:
        """The adapter file to continue from, if there is one."""
        given, digest = self.recipe.values["lora_checkpoint_url"], _digest(self.recipe.values["lora_checkpoint_sha256"])
        if given is None:
            return None, ""
        if is_address(given):
            limit = self.recipe.values["max_member_bytes"]
            wanted = Wanted(
                field="lora_checkpoint_url", url=given, suffix=".safetensors", max_bytes=limit, fault=_lora_fault,
                sha256=digest,
            )  # fmt: skip
            return self._fetched(wanted)
        path = local_path(given)
        if not path.is_file():
            raise SourceNotFound(f"lora_checkpoint_url {given}", NO_CHECKPOINT, GIVE_CHECKPOINT)
        self._check_digest("lora_checkpoint_sha256", path, digest)
        return path, ""

    @property
    def _folder(self) -> Path:
        return self.recipe.store / "shared" / "sources"

    def _fetched(self, wanted: Wanted) -> Place:
        held = self._held(wanted.sha256, wanted.suffix)
        if held is not None:
            self.say(f"{wanted.field}: the file of that sha256 is in the store; {wanted.shown} is not asked")
            return held, ""
        if not self.make:
            return None, f"unknown until fetched: {wanted.shown}"
        self._folder.mkdir(parents=True, exist_ok=True)
        with Store(self.recipe.store).lock("fetch", wanted.key):
            return Fetch(wanted=wanted, folder=self._folder, say=self.say, progress=self.progress).file(), ""

    def _held(self, digest: str | None, suffix: str) -> Path | None:
        """The file of this digest, if the store has it and it is whole."""
        path = self._folder / f"{(digest or '')[:32]}{suffix}"
        if digest is None or not path.is_file():
            return None
        return path if self.digest_cache.digest(path) == f"sha256:{digest}" else None

    def _data(self, text: str, digest: str | None) -> Place:
        """A data: zip, written into the store under the name of its content."""
        head, _, body = text.partition(",")
        if head not in ("data:application/zip;base64", "data:application/x-zip-compressed;base64"):
            raise SourceNotFound(head[:80], "a data: address must begin with data:application/zip;base64,", GIVE_DATA)
        try:
            content = base64.b64decode(body, validate=True)
        except ValueError as error:
            raise SourceNotFound(head, f"the base64 is damaged ({error})", GIVE_DATA) from error
        found = hashlib.sha256(content).hexdigest()
        if digest not in (None, found):
            raise _wrong_digest("audio_sha256", found)
        path = self._folder / f"{found[:32]}.zip"
        if not path.is_file():
            if not self.make:
                return None, "unknown until it is run: plan does not write the data: zip into the store"
            atomic_write_bytes(path, content)
        return path, ""

    def _check_digest(self, field: str, path: Path, digest: str | None) -> None:
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
    return given.lower().removeprefix("sha256:") if given else None


def _zip_fault(path: Path) -> str | None:
    try:
        with opened_zip(path):
            return None
    except SourceUnreadable as error:
        return f"is no zip: {error.why}"


def _lora_fault(path: Path) -> str | None:
    try:
        read_header(path)
    except NotSafetensors:
        return "is no safetensors file"
    return None
