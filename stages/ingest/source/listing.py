"""Lists a zip or folder and digests its files, which gives its fingerprint. Light: standard library only."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from cache.fingerprint import digest_file
from stages.contract import Member, Source
from stages.errors import SourceUnreadable
from stages.ingest.audio_content import HEAD_BYTES, is_for_libsndfile, kind_for_pyav
from stages.ingest.faults import as_line, fault
from stages.ingest.file_types import READABLE, suffix
from stages.ingest.source.archive import (
    READ_ERRORS,
    ListedFile,
    as_member,
    digest_entry,
    list_folder,
    list_zip,
    opened_zip,
)
from stages.ingest.source.dataset_files import source_fingerprint
from stages.ingest.source.limits import ArchiveLimits
from stages.ingest.source.names import path_in_folder

_LIST_VERSION = 4
"""Bump when the same zip should be listed differently: remembered lists are then made again."""


class DigestLookup(Protocol):
    """Remembers facts about a file for as long as the file does not change."""

    def get(self, path: Path, what: str) -> str | None: ...

    def put(self, path: Path, what: str, value: str) -> None: ...

    def prefetch(self, folder: Path, what: str) -> None: ...


def open_source(path: Path, digest_cache: DigestLookup | None = None, limits: ArchiveLimits | None = None) -> Source:
    """List a zip or folder and digest every file in it; files that cannot be read have a fault instead.

    Args:
        digest_cache: where digests are remembered: one list for a zip, one digest per file for a folder.
        limits: limits of reading; by default those of the ingest params.

    Raises:
        SourceUnreadable: the path is missing, or is neither a folder nor a readable zip.
    """
    limits = limits or ArchiveLimits()
    if path.is_dir():
        if digest_cache:
            digest_cache.prefetch(path, "bytes")
        return _source(path, "folder", [_folder_member(listed, digest_cache) for listed in list_folder(path, limits)])
    if not path.exists():
        raise SourceUnreadable(path, "there is no such file or folder", "Check the spelling of the path.")
    if not path.is_file():
        raise SourceUnreadable(path, "it is neither a file nor a folder", "Give a .zip or a folder.")
    return _source(path, "zip", _zip_members(path, digest_cache, limits))


def _source(path: Path, kind: str, members: Sequence[Member]) -> Source:
    heads = _heads(path, kind, members) if find_spec("av") is None else {}
    members = [_decodable(member, heads.get(member.name)) for member in members]
    return Source(path=path, kind=kind, fingerprint=source_fingerprint(members), members=tuple(members))


def _heads(path: Path, kind: str, members: Sequence[Member]) -> dict[str, bytes]:
    """The first bytes of each audio file, by name; empty where they cannot be read."""
    read = [member for member in members if member.fault is None and suffix(member.name) in READABLE]
    if kind == "folder":
        return {one.name: _head(path_in_folder(path, one.name, one.name_encoding)) for one in read}
    audio = [member.name for member in read]
    with opened_zip(path) as archive:
        entries = {listed.name: listed.location for listed in list_zip(archive, ArchiveLimits())}
        return {name: _head(zipfile.Path(archive, str(getattr(entries[name], "filename", name)))) for name in audio}


def _head(path: Path | zipfile.Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except READ_ERRORS:
        return b""


def _decodable(member: Member, head: bytes | None) -> Member:
    """The member, with a fault where its decoder is not installed, or a mark where it may not be.

    Both change the dataset's fingerprint, so a result made without the decoder is not found with it.
    """
    kind = kind_for_pyav(head) if head else None
    if kind is not None:
        return replace(member, digest=None, fault=as_line(fault(member.name, "audio_needs_pyav", kind=kind)))
    return member if head is None or is_for_libsndfile(head) else replace(member, lacks="PyAV")


def _folder_member(listed: ListedFile, digest_cache: DigestLookup | None) -> Member:
    def digest(one: ListedFile) -> str:
        assert isinstance(one.location, Path)
        known = digest_cache.get(one.location, "bytes") if digest_cache else None
        if known is None:
            known = digest_file(one.location)
            if digest_cache:
                digest_cache.put(one.location, "bytes", known)
        return known

    return as_member(listed, digest)


def _zip_members(path: Path, digest_cache: DigestLookup | None, limits: ArchiveLimits) -> list[Member]:
    what = f"zip members, version {_LIST_VERSION}, limits {limits}"
    known = digest_cache.get(path, what) if digest_cache else None
    if known is not None:
        return [Member(**values) for values in json.loads(known)]
    with opened_zip(path, limits) as archive:
        members = [_zip_member(archive, listed) for listed in list_zip(archive, limits)]
    if digest_cache:
        digest_cache.put(path, what, json.dumps([asdict(member) for member in members]))
    return members


def _zip_member(archive: zipfile.ZipFile, listed: ListedFile) -> Member:
    def digest(one: ListedFile) -> str:
        assert isinstance(one.location, zipfile.ZipInfo)
        return digest_entry(archive, one.location)

    return as_member(listed, digest)
