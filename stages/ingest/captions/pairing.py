"""Which caption belongs to which audio, and its text. Light: standard library only."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stages.contract import Member
from stages.errors import Fault
from stages.ingest.caption_template import SIDECAR
from stages.ingest.faults import ARCHIVE_WIDE, Unfit, fault, note, of_member
from stages.ingest.file_types import ARCHIVES, CAPTION, READABLE, UNREADABLE, stem, suffix, unreadable_format


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One audio file and what its caption is made of."""

    audio: Member
    caption: Member | None
    """The sibling .txt; None only where a template does without."""
    sidecar: Member | None = None
    """The sibling .json; looked for only when there is a template."""

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
    sidecars: tuple[Member, ...]
    """Every .json beside an audio file that may be read."""
    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]
    num_audio: int
    """Audio files, readable or not."""


def pair(members: Sequence[Member], *, templated: bool = False) -> Pairing:
    """Sort files into clips; every file that fits none is a fault or a note.

    Args:
        templated: captions are made by a template, so a .json beside an audio file is part of the clip and a .txt is
            not required.
    """
    audio = [member for member in members if _is_audio(member)]
    captions = [member for member in members if suffix(member.name) == CAPTION]
    sidecars = _sidecars(members, audio) if templated else []
    taken = {id(member) for member in (*audio, *captions, *sidecars)}
    carried = [found for member in audio + captions + sidecars if (found := of_member(member))]
    foreign = [unreadable_format(member.name) for member in audio if suffix(member.name) in UNREADABLE]
    doubled = [*_duplicates(audio), *_duplicates(captions), *_duplicates(sidecars)]
    lonely = [*_alone(captions, audio, "missing_audio"), *(() if templated else _alone(audio, captions))]
    others, notes = _others([member for member in members if id(member) not in taken])
    unread = {one.member for one in (*carried, *foreign)} | {m.name for m in members if m.fault} | _repeated(members)
    bad = unread | {found.member for found in doubled}
    text, json = ({_key(m.name): m for m in some if m.name not in bad} for some in (captions, sidecars))
    spoilt = {_key(member.name) for member in (*captions, *sidecars) if member.name in bad}
    pairs = [
        Pair(audio=m, caption=text.get(_key(m.name)), sidecar=json.get(_key(m.name)))
        for m in audio
        if m.name not in bad and _key(m.name) not in spoilt and (templated or _key(m.name) in text)
    ]
    return Pairing(
        pairs=tuple(sorted(pairs, key=lambda one: one.clip_id)),
        audio=tuple(member for member in audio if member.name not in unread),
        captions=tuple(member for member in captions if member.name not in unread),
        sidecars=tuple(member for member in sidecars if member.name not in unread),
        faults=(*carried, *foreign, *doubled, *lonely, *others),
        notes=tuple(notes),
        num_audio=len(audio),
    )


def num_audio(members: Sequence[Member]) -> int:
    """Audio files, readable or not."""
    return sum(_is_audio(member) for member in members)


def _is_audio(member: Member) -> bool:
    return suffix(member.name) in READABLE | UNREADABLE


def _sidecars(members: Sequence[Member], audio: Sequence[Member]) -> list[Member]:
    """The .json files that share their stem with an audio file."""
    stems = {_key(member.name) for member in audio}
    return [m for m in members if suffix(m.name) == SIDECAR and _key(m.name) in stems]


def _repeated(members: Sequence[Member]) -> set[str]:
    """Names a zip holds more than once: there is no telling which file such a name means."""
    return {name for name, count in Counter(member.name for member in members).items() if count > 1}


def _others(members: Sequence[Member]) -> tuple[list[Fault], list[Fault]]:
    """Faults and notes about files that are no part of a clip: hostile ones are faults, the rest is only mentioned."""
    faults: list[Fault] = []
    notes: list[Fault] = []
    for member in members:
        carried = of_member(member)
        if suffix(member.name) in ARCHIVES and (carried is None or carried.type not in ARCHIVE_WIDE):
            faults.append(fault(member.name, "nested_archive"))
        elif carried is None:
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


def _alone(members: Sequence[Member], partners: Sequence[Member], type: str = "missing_caption") -> Iterator[Fault]:
    """Files without a partner of the same stem, and the partner that differs only in case, if there is one."""
    exact = {_key(partner.name) for partner in partners}
    folded = {_key(partner.name).casefold(): partner.name for partner in partners}
    for member in members:
        if _key(member.name) not in exact:
            near = folded.get(_key(member.name).casefold())
            hint = f" ({near} differs in upper and lower case)" if near else ""
            yield fault(member.name, type, wanted=stem(member.name) + CAPTION, near=hint)


def caption_text(data: bytes) -> str:
    """What a caption file says, stripped.

    Raises:
        Unfit: not UTF-8, or no text in it.
    """
    try:
        return visible(data.decode("utf-8-sig").strip())
    except UnicodeDecodeError:
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        raise Unfit("caption_not_utf8", hint=" (it looks like UTF-16)" if utf16 else "") from None


def visible(text: str) -> str:
    """The text itself. Unfit when nothing of it can be seen, or when it is no text that could be stored."""
    if not any(_is_visible(letter) for letter in text):
        raise Unfit("empty_caption")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair
        raise Unfit("caption_not_utf8", hint="") from None
    return text


def with_phrase(text: str, trigger_phrase: str | None) -> str:
    """The prompt: the trigger phrase, then the caption unless it holds the phrase already."""
    phrase = (trigger_phrase or "").strip()
    if not phrase or phrase.casefold() in text.casefold():
        return text
    return f"{phrase}, {text}"


def prompt_of(data: bytes, trigger_phrase: str | None) -> str:
    """The prompt that a caption file leads to.

    Raises:
        Unfit: not UTF-8, or no text in it.
    """
    return with_phrase(caption_text(data), trigger_phrase)


def _is_visible(letter: str) -> bool:
    """False for spaces, control characters and invisible joiners."""
    return not letter.isspace() and unicodedata.category(letter) not in ("Cc", "Cf")


def _key(name: str) -> str:
    """The stem as both files of a clip spell it: macOS decomposes accents, other systems do not."""
    return unicodedata.normalize("NFC", stem(name))
