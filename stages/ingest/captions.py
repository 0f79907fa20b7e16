"""Which caption belongs to which audio, and its text. Light: standard library only."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from stages.contract import Member
from stages.errors import Fault
from stages.ingest.faults import ARCHIVE_WIDE, Unfit, fault, note, of_member

READABLE = {".wav", ".wave", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc"} | {
    *(".au", ".snd", ".caf", ".w64", ".rf64")
}
"""Suffixes that are decoded."""
UNREADABLE = {".m4a", ".m4b", ".aac", ".alac", ".wma", ".ape", ".wv", ".tta", ".tak", ".mpc", ".ac3", ".eac3"} | {
    *(".dts", ".dsf", ".dff", ".amr", ".3gp", ".ra", ".mka", ".weba")
}
"""Audio all the same: leaving it out unsaid would lose a clip."""
CAPTION = ".txt"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One audio file and its caption."""

    audio: Member
    caption: Member

    @property
    def clip_id(self) -> str:
        """The audio's path without its suffix."""
        return stem(self.audio.name)


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """The dataset by clips, and what its names alone show to be wrong."""

    pairs: tuple[Pair, ...]
    """Audio with its caption, sorted by clip; both may be read."""
    audio: tuple[Member, ...]
    """Every audio file that may be read, with or without a caption."""
    captions: tuple[Member, ...]
    """Every caption that may be read, with or without audio."""
    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]
    num_audio: int
    """Audio files, readable or not."""


def pair(members: Sequence[Member]) -> Pairing:
    """Sort files into clips; every file that fits none is a fault or a note."""
    audio = [member for member in members if suffix(member.name) in READABLE | UNREADABLE]
    captions = [member for member in members if suffix(member.name) == CAPTION]
    others = [member for member in members if suffix(member.name) not in READABLE | UNREADABLE | {CAPTION}]
    carried = [found for member in audio + captions if (found := of_member(member))]
    foreign = [fault(m.name, "format_unsupported", **_parts(m)) for m in audio if suffix(m.name) in UNREADABLE]
    doubled = [*_duplicates(audio), *_duplicates(captions)]
    lonely = [*_alone(audio, captions, "caption_missing"), *_alone(captions, audio, "audio_missing")]
    hostile, notes = _others(others)
    unread = {m.name for m in audio + captions if m.fault} | {found.member for found in foreign} | _repeated(members)
    unpaired = unread | {found.member for found in doubled}
    by_stem = {_key(member.name): member for member in captions if member.name not in unpaired}
    whole = [m for m in audio if m.name not in unpaired and _key(m.name) in by_stem]
    pairs = [Pair(audio=m, caption=by_stem[_key(m.name)]) for m in whole]
    return Pairing(
        pairs=tuple(sorted(pairs, key=lambda one: one.clip_id)),
        audio=tuple(member for member in audio if member.name not in unread),
        captions=tuple(member for member in captions if member.name not in unread),
        faults=(*carried, *foreign, *doubled, *lonely, *hostile),
        notes=tuple(notes),
        num_audio=len(audio),
    )


def _repeated(members: Sequence[Member]) -> set[str]:
    """Names a zip holds more than once: there is no telling which file such a name means."""
    return {name for name, count in Counter(member.name for member in members).items() if count > 1}


def _others(members: Sequence[Member]) -> tuple[list[Fault], list[Fault]]:
    """Faults and notes about files that are no part of a clip: hostile ones are faults, the rest is only mentioned."""
    faults: list[Fault] = []
    notes: list[Fault] = []
    for member in members:
        carried = of_member(member)
        if carried is None:
            notes.append(note(member.name, "other_file"))
        elif carried.type in ARCHIVE_WIDE:
            faults.append(carried)
        else:
            notes.append(note(member.name, "unread_file", why=carried.type.replace("_", " ")))
    return faults, notes


def _duplicates(members: Sequence[Member]) -> Iterator[Fault]:
    """Files whose names differ at most in suffix and case: they share a caption, and on some systems are one file."""
    groups: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        groups[_key(member.name).casefold()].append(member)
    for group in groups.values():
        for number, member in enumerate(group):
            others = [other.name for place, other in enumerate(group) if place != number]
            if others:
                yield fault(member.name, "duplicate_name", others=", ".join(sorted(others)))


def _alone(members: Sequence[Member], partners: Sequence[Member], type: str) -> Iterator[Fault]:
    """Files without a partner of the same stem, and the partner that differs only in case, if there is one."""
    exact = {_key(partner.name) for partner in partners}
    folded = {_key(partner.name).casefold(): partner.name for partner in partners}
    for member in members:
        if _key(member.name) not in exact:
            near = folded.get(_key(member.name).casefold())
            hint = f" ({near} differs in upper and lower case)" if near else ""
            yield fault(member.name, type, wanted=stem(member.name) + CAPTION, near=hint)


def prompt_of(data: bytes, trigger_phrase: str | None) -> str:
    """The caption's text, with the trigger phrase before it unless it holds the phrase already.

    Raises:
        Unfit: not UTF-8, or no text in it.
    """
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        raise Unfit("caption_not_utf8", hint=" (it looks like UTF-16)" if utf16 else "") from None
    if not any(_is_visible(letter) for letter in text):
        raise Unfit("caption_empty")
    phrase = (trigger_phrase or "").strip()
    if not phrase or phrase.casefold() in text.casefold():
        return text
    return f"{phrase}, {text}"


def _is_visible(letter: str) -> bool:
    """False for spaces, control characters and invisible joiners."""
    return not letter.isspace() and unicodedata.category(letter) not in ("Cc", "Cf")


def suffix(name: str) -> str:
    """`.wav` of `drums/Kick.WAV`."""
    return PurePosixPath(name).suffix.lower()


def stem(name: str) -> str:
    """`drums/Kick` of `drums/Kick.WAV`."""
    return str(PurePosixPath(name).with_suffix(""))


def _key(name: str) -> str:
    """The stem as both files of a clip spell it: macOS decomposes accents, other systems do not."""
    return unicodedata.normalize("NFC", stem(name))


def _parts(member: Member) -> dict[str, str]:
    """What the message about an unreadable format names."""
    return {"suffix": suffix(member.name), "name": member.name, "stem": stem(member.name)}
