"""Pairs audio files with their captions, and reads caption text. Light: standard library only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from stages.contract import Member
from stages.errors import Fault
from stages.ingest.caption_template import SIDECAR
from stages.ingest.captions.beside import Surroundings
from stages.ingest.faults import ARCHIVE_WIDE, NOT_DATA, FileRejected, fault, fault_of_member, sorted_faults, warning
from stages.ingest.file_types import (
    ARCHIVES,
    CAPTION,
    READABLE,
    UNREADABLE,
    pairing_key,
    stem,
    suffix,
    unreadable_format,
)
from stages.ingest.source.names import CP437, has_hidden_part
from stages.text import NotText, UnknownEncoding, control_character, decoded, has_visible


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One audio file and the files its caption is made from."""

    audio: Member
    caption: Member | None
    """The .txt of the same name; None only where a template needs none."""
    sidecar: Member | None = None
    """The .json of the same name; looked for only when there is a template."""

    @property
    def clip_id(self) -> str:
        """The audio's path without its suffix."""
        return stem(self.audio.name)


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """The files of a dataset sorted into clips, and the faults that their names show."""

    pairs: tuple[Pair, ...]
    """Audio with its caption, both readable, sorted by clip."""
    audio: tuple[Member, ...]
    """Every readable audio file, with or without a caption."""
    captions: tuple[Member, ...]
    """Every readable caption, with or without audio."""
    sidecars: tuple[Member, ...]
    """Every readable .json with the name of an audio file."""
    faults: tuple[Fault, ...]
    warnings: tuple[Fault, ...]
    num_audio: int
    """Audio files, readable or not."""


def pair(
    members: Sequence[Member],
    *,
    templated: bool = False,
    table: str | None = None,
    one_for_all: bool = False,
    others: Sequence[Member] = (),
) -> Pairing:
    """Sort files into clips; every file that belongs to none is a fault or a warning.

    Args:
        templated: captions are made by a template, so a .json with the name of an audio file is part of the clip and a
            .txt is not required.
        table: the file that holds the captions, so that a .txt is not required.
        one_for_all: the request gives every clip its caption, so that neither is.
        others: files that are in no clip, of which some may be meant as captions.
    """
    optional = templated or one_for_all or table is not None
    audio = [member for member in members if _is_audio(member)]
    audio_keys = {pairing_key(member.name) for member in audio}
    captions = [m for m in members if m.name != table and _is_caption(m, audio_keys, alone=table is None)]
    sidecars = [m for m in _sidecars(members, audio) if m.name != table] if templated else []
    used = {id(member) for member in (*audio, *captions, *sidecars)}
    needed = audio if one_for_all else audio + captions + sidecars
    unreadable = [found for member in needed if (found := fault_of_member(member))]
    unsupported = [unreadable_format(member.name) for member in audio if suffix(member.name) in UNREADABLE]
    doubled = [*_duplicates(audio), *_duplicates(captions), *_duplicates(sidecars)]
    near = Surroundings(member.name for member in (*members, *others))
    unpaired = [
        *_unpaired(captions, audio, "missing_audio", near.sound),
        *(() if optional else _unpaired(audio, captions, near=near.hint)),
    ]
    beside = [member for member in members if id(member) not in used and member.name != table]
    other_faults, warnings = _others(beside)
    unread = (
        {one.member for one in (*unreadable, *unsupported)} | {m.name for m in members if m.fault} | _repeated(members)
    )
    bad = unread | {found.member for found in doubled}
    text, json = ({pairing_key(m.name): m for m in some if m.name not in bad} for some in (captions, sidecars))
    bad_keys = {pairing_key(member.name) for member in (*captions, *sidecars) if member.name in bad}
    pairs = [
        Pair(audio=m, caption=text.get(pairing_key(m.name)), sidecar=json.get(pairing_key(m.name)))
        for m in audio
        if m.name not in bad and pairing_key(m.name) not in bad_keys and (optional or pairing_key(m.name) in text)
    ]
    return Pairing(
        pairs=tuple(sorted(pairs, key=lambda one: one.clip_id)),
        audio=tuple(member for member in audio if member.name not in unread),
        captions=tuple(member for member in captions if member.name not in unread),
        sidecars=tuple(member for member in sidecars if member.name not in unread),
        faults=(*unreadable, *unsupported, *doubled, *unpaired, *other_faults),
        warnings=(*warnings, *_guessed_names([*audio, *captions, *sidecars])),
        num_audio=len(audio),
    )


def other_file_notes(members: Sequence[Member]) -> list[Fault]:
    """A note for each file that is part of no clip."""
    return sorted_faults(_others(members)[1])


def num_audio(members: Sequence[Member]) -> int:
    """Number of audio files, readable or not."""
    return sum(_is_audio(member) for member in members)


def _is_audio(member: Member) -> bool:
    return suffix(member.name) in READABLE | UNREADABLE


def _is_caption(member: Member, audio_keys: Collection[str], *, alone: bool) -> bool:
    """Whether it is a .txt; a hidden one only beside its audio, as programs keep files of that kind for themselves.

    Args:
        alone: one without audio is a caption, too; not where a table holds the captions.
    """
    return suffix(member.name) == CAPTION and (
        pairing_key(member.name) in audio_keys or (alone and not has_hidden_part(member.name))
    )


def _sidecars(members: Sequence[Member], audio: Sequence[Member]) -> list[Member]:
    """The .json files with the name of an audio file."""
    stems = {pairing_key(member.name) for member in audio}
    return [m for m in members if suffix(m.name) == SIDECAR and pairing_key(m.name) in stems]


def _repeated(members: Sequence[Member]) -> set[str]:
    """Names that a zip holds more than once, so that it is unknown which file they mean."""
    return {name for name, count in Counter(member.name for member in members).items() if count > 1}


def _others(members: Sequence[Member]) -> tuple[list[Fault], list[Fault]]:
    """Faults and warnings about files that are part of no clip: hostile files are faults, others warnings."""
    faults: list[Fault] = []
    warnings: list[Fault] = []
    for member in members:
        found = fault_of_member(member)
        hidden = has_hidden_part(member.name)  # a clip if it is audio, and otherwise no reason to stop
        if suffix(member.name) in ARCHIVES and not hidden and (found is None or found.type not in ARCHIVE_WIDE):
            faults.append(fault(member.name, "nested_archive"))
        elif found is None:
            warnings.append(warning(member.name, "other_file"))
        elif found.type in NOT_DATA:
            warnings.append(found)
        elif found.type in ARCHIVE_WIDE and not hidden:
            faults.append(found)
        else:
            warnings.append(warning(member.name, "unread_file", why=found.type.replace("_", " ")))
    return faults, warnings


def _guessed_names(members: Sequence[Member]) -> Iterator[Fault]:
    """A warning for each name whose encoding the archive does not say."""
    for member in members:
        if member.name_encoding == CP437:
            yield warning(member.name, "name_read_as_cp437")


def _duplicates(members: Sequence[Member]) -> Iterator[Fault]:
    """Files whose names differ at most in suffix and case: they share a caption, and on some systems are one file."""
    groups: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        key = pairing_key(member.name)
        # In a name of unknown encoding a "letter" is a byte, perhaps half of a letter: it has no upper and lower case.
        groups[key if member.name_encoding == CP437 else key.casefold()].append(member)
    for group in groups.values():
        for number, member in enumerate(group):
            others = [other.name for index, other in enumerate(group) if index != number]
            if others:
                yield fault(member.name, "duplicate_name", others=", ".join(sorted(others)))


def _unpaired(
    members: Sequence[Member],
    partners: Sequence[Member],
    type: str = "missing_caption",
    near: Callable[[str], str] = lambda name: "",
) -> Iterator[Fault]:
    """A fault for each file without a partner of the same stem; it names a partner that differs only in case."""
    exact = {pairing_key(partner.name) for partner in partners}
    folded = {pairing_key(partner.name).casefold(): partner.name for partner in partners}
    for member in members:
        if pairing_key(member.name) not in exact:
            alike = folded.get(pairing_key(member.name).casefold())
            hint = f" ({alike} differs in upper and lower case)" if alike else near(member.name)
            yield fault(member.name, type, wanted=stem(member.name) + CAPTION, near=hint)


def caption_text(data: bytes) -> str:
    """The text of a caption file, stripped.

    Raises:
        FileRejected: it is not UTF-8 (or UTF-16 with its mark), is no text, or contains none.
    """
    try:
        return storable_text(decoded(data).strip())
    except UnknownEncoding as error:
        hint = "" if str(error) == "not UTF-8" else f" (it is {error})"
        raise FileRejected("caption_not_utf8", hint=hint) from None
    except NotText as error:
        raise FileRejected("caption_not_text", what=f"is {error}") from None


def storable_text(text: str) -> str:
    """The text, unchanged.

    Raises:
        FileRejected: none of it is visible, or it holds what no text does.
    """
    if not has_visible(text):
        raise FileRejected("empty_caption")
    if (wrong := control_character(text)) is not None:
        raise FileRejected("caption_not_text", what=f"holds {wrong}")
    return text
