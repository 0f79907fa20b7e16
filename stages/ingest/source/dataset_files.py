"""Which files of a zip or folder belong to the dataset, and so to its name. Light: standard library only.

A README or a cover picture beside the clips is in no clip: it is reported, and changes no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cache.fingerprint import fingerprint
from stages.contract import Member, Source
from stages.ingest.caption_template import SIDECAR
from stages.ingest.faults import ARCHIVE_WIDE, fault_of_member
from stages.ingest.file_types import ARCHIVES, CAPTION, READABLE, UNREADABLE, pairing_key, suffix
from stages.ingest.source.names import has_hidden_part

_AUDIO = READABLE | UNREADABLE


def source_fingerprint(members: Sequence[Member]) -> str:
    """The name of a dataset: its files' sorted names, each with its digest or the fault that takes its place."""
    named = (
        [member.name, member.digest or member.fault, *([member.lacks] if member.lacks else [])] for member in members
    )
    return fingerprint("source", {"members": sorted(named)})


def clip_files(source: Source, *, templated: bool, table: str | None = None) -> Source:
    """The source with the files that clips are made of as its members, and all others beside them.

    Args:
        templated: captions are made by a template, which reads a .json with the name of an audio file.
        table: the file that holds the captions, if they are in one.
    """
    audio = {pairing_key(member.name) for member in source.members if suffix(member.name) in _AUDIO}
    members: list[Member] = []
    others: list[Member] = []
    for member in source.members:
        (members if member.name == table or _belongs(member, audio, templated) else others).append(member)
    return replace(source, members=tuple(members), others=tuple(others), fingerprint=source_fingerprint(members))


def _belongs(member: Member, audio: set[str], templated: bool) -> bool:
    """Whether results depend on the file: it is part of a clip, or a fault of the dataset if it stays."""
    ending, beside_audio = suffix(member.name), pairing_key(member.name) in audio
    if ending in _AUDIO or (ending == CAPTION and beside_audio) or (ending == SIDECAR and templated and beside_audio):
        return True
    if has_hidden_part(member.name):
        return False
    found = fault_of_member(member)
    return ending == CAPTION or ending in ARCHIVES or (found is not None and found.type in ARCHIVE_WIDE)
