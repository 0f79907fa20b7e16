"""The prompt of every clip: its .txt, or a filled template. Light: standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from stages.contract import Member, Source
from stages.errors import Fault
from stages.ingest.caption_template import (
    CAPTION_KEY,
    CaptionSources,
    filled_template,
    name_in_words,
    read_sidecar,
    template_keys,
)
from stages.ingest.captions.caption_table import CaptionTable, read_caption_table
from stages.ingest.captions.pairing import Pair, Pairing, caption_text, storable_text
from stages.ingest.captions.trigger_phrase import with_trigger_phrase
from stages.ingest.faults import FileRejected, warning
from stages.ingest.source.archive import read_member
from stages.ingest.stage import IngestParams

T = TypeVar("T")
REQUEST = "the caption of the request"
"""Where a caption is from that is the same for every clip."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The text given to the model with one clip, and where it came from."""

    text: str
    source: str
    """The member or members that the caption came from."""


@dataclass(kw_only=True)
class Prompts:
    """Every prompt, by the name of its audio file, and the faults of captions and sidecars."""

    by_audio: dict[str, Prompt] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def read_prompts(source: Source, pairing: Pairing, params: IngestParams) -> Prompts:
    """Read every caption file once, with or without audio; return the prompt of every pair."""
    found = Prompts()
    if params.caption is not None:
        text = with_trigger_phrase(params.caption.strip(), params.trigger_phrase)
        found.by_audio = {pair.audio.name: Prompt(text=text, source=REQUEST) for pair in pairing.pairs}
        return found
    captions = pairing.captions if params.captions is None else ()
    texts = dict(_readable(captions, source, caption_text, found.faults))
    sidecars = dict(_readable(pairing.sidecars, source, read_sidecar, found.faults))
    table = None if params.captions is None else read_caption_table(source, params.captions, pairing.audio)
    found.faults += table.faults if table else []
    for pair in pairing.pairs:
        if table is not None and _is_said(table, pair.audio.name):
            continue
        try:
            caption = _caption(pair, texts, table, params)
            made = _prompt(pair, caption, texts, sidecars, source, params)
        except FileRejected as rejection:
            found.faults.append(rejection.fault(pair.audio.name))
            continue
        if made is not None:
            found.by_audio[pair.audio.name] = made
    return found


def _readable(
    members: Iterable[Member], source: Source, parse: Callable[[bytes], T], faults: list[Fault]
) -> Iterable[tuple[str, T]]:
    """(name, content) of every file that can be read; the faults of the others are appended to `faults`."""
    for member in members:
        try:
            yield member.name, parse(read_member(source.path, source.kind, member))
        except FileRejected as rejection:
            faults.append(rejection.fault(member.name))


def _is_said(table: CaptionTable, name: str) -> bool:
    """Whether a fault of the table says already why a clip has no caption: one of its row, or of the whole table."""
    return name in table.refused or not (table.is_read or table.captions)


def _caption(
    pair: Pair, texts: Mapping[str, str], table: CaptionTable | None, params: IngestParams
) -> tuple[str | None, str]:
    """The caption of one clip, and the file it is from; None where there is none and a template needs none.

    Raises:
        FileRejected: the table of captions has no row for it.
    """
    if table is None:
        return (texts.get(pair.caption.name), pair.caption.name) if pair.caption else (None, "")
    if pair.audio.name not in table.captions:
        raise FileRejected("caption_row_missing", table=params.captions, wanted=f"{pair.clip_id}.txt")
    return table.captions[pair.audio.name], str(params.captions)


def _prompt(
    pair: Pair,
    named_caption: tuple[str | None, str],
    texts: Mapping[str, str],
    sidecars: Mapping[str, Mapping[str, object]],
    source: Source,
    params: IngestParams,
) -> Prompt | None:
    """The prompt of one clip; None when one of its files has a fault, which is recorded already."""
    caption_member = pair.caption if params.captions is None else None
    files: list[tuple[Member | None, Mapping[str, object]]] = [(caption_member, texts), (pair.sidecar, sidecars)]
    if any(member is not None and member.name not in read for member, read in files):
        return None
    caption, caption_file = named_caption
    if params.caption_template is None:
        assert caption is not None
        return Prompt(text=with_trigger_phrase(caption, params.trigger_phrase), source=caption_file)
    sidecar = sidecars[pair.sidecar.name] if pair.sidecar else {}

    @lru_cache(maxsize=1)
    def tags() -> Mapping[str, str]:
        from stages.ingest.captions.tags import read_tags  # deferred: only some templates look into the audio

        return read_tags(read_member(source.path, source.kind, pair.audio))

    names = (caption_file, _name(pair.sidecar), f"tags of {pair.audio.name}")
    sources = CaptionSources(
        caption=lambda: caption, sidecar=sidecar, tags=tags, names=names, filename=name_in_words(pair.audio.name)
    )
    text, where = filled_template(params.caption_template, sources)
    try:
        text = storable_text(text.strip())
    except FileRejected as rejection:  # of no file: what the template makes of its keys
        what = {"empty_caption": "is empty"}.get(rejection.type, str(rejection.facts.get("what")))
        raise FileRejected("caption_made_no_text", what=what, where=where or "the template") from None
    return Prompt(text=with_trigger_phrase(text, params.trigger_phrase), source=where)


def _name(member: Member | None) -> str:
    return member.name if member else ""


_OF_TEMPLATE = ("the caption template", "add {caption} to the template to use it")


def unused_captions(pairs: Iterable[Pair], params: IngestParams) -> Iterable[Fault]:
    """A warning for each .txt that the template does not use, or that a table takes the place of."""
    template = params.caption_template
    if params.captions is not None:
        yield from (
            warning(one.caption.name, "caption_in_table", table=params.captions) for one in pairs if one.caption
        )
    elif params.caption is not None or (template is not None and CAPTION_KEY not in template_keys(template)):
        by, use = ("--caption", "leave that out to use it") if template is None else _OF_TEMPLATE
        for pair in pairs:
            if pair.caption is not None:
                yield warning(pair.caption.name, "caption_unused", by=by, use=use)
