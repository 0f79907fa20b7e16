"""Why one clip is a hit or a miss, down to the field that changed: its keys against those of earlier results.

data       the clip's bytes, against the earlier dataset that knew it
prepared   source bytes and audio params
latents    source bytes, audio params, encode params, autoencoder
prompt     text, text encoder
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cache.location import Location
from cache.receipt import Receipt
from cache.registry import Registry
from cache.store import Store
from pipeline.errors import ClipNotFound
from pipeline.plan.plan import leaves, plan
from pipeline.plan.stage_run import State
from pipeline.request.recipe import Recipe
from pipeline.request.resolve import ResolvedInputs
from stages.contract import Member, Weights
from stages.encode.stage import STAGE as ENCODE
from stages.encode.stage import EncodeParams, item_key, prompt_key
from stages.ingest.captions.pairing import pair
from stages.ingest.captions.prompts import read_prompts
from stages.ingest.file_types import READABLE, stem, suffix
from stages.ingest.source.archive import forget_open_archives
from stages.ingest.stage import audio_params, prepared_place
from stages.records import Clip

UNKNOWN = "its caption is missing or has a fault; ingest says which"
_MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line about a clip."""

    clip_id: str
    what: str
    """`data`, `prepared`, `latents` or `prompt`."""
    state: str
    """`HIT`, `MISS`, or `?` where an earlier stage must run first."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A clip as the data has it now."""

    clip_id: str
    digest: str
    crop_start: int = 0
    prompt: str | None = None
    """None where the caption has a fault, or there is none."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """An earlier result that knew the clip."""

    receipt: Receipt
    """Of an ingest, or of the encoding that read it."""
    clip: Clip
    audio: Mapping[str, Any]


def explain(recipe: Recipe, store: Store, found: ResolvedInputs, clip: str | None) -> list[Finding]:
    """Findings for one clip, or for every clip of the data.

    Raises:
        ClipNotFound: naming near ones.
    """
    subjects = subjects_of(recipe, store, found)
    if clip is not None:
        wanted = {clip, stem(clip)}
        chosen = [one for one in subjects if one.clip_id in wanted or one.clip_id.partition("#")[0] in wanted]
        if not chosen:
            raise ClipNotFound(clip, difflib.get_close_matches(clip, [one.clip_id for one in subjects], 3))
        subjects = chosen
    look = Look(recipe, store, found, subjects)
    return [finding for subject in subjects for finding in look.findings(subject)]


def subjects_of(recipe: Recipe, store: Store, found: ResolvedInputs) -> list[Subject]:
    """Every clip: as the finished ingest lists them, else as the data's file names show."""
    (ingest,) = plan(recipe, store, found, "ingest").runs
    receipt = store.find("ingest", str(ingest.fingerprint))
    if receipt is not None:
        return [
            Subject(clip_id=row.clip_id, digest=row.digest, crop_start=row.crop_start, prompt=row.prompt)
            for row in rows_of(store, receipt)
        ]
    audio: list[Member] = [one for one in found.source.members if suffix(one.name) in READABLE and one.digest]
    prompts = prompts_of(recipe, found)
    subjects = (Subject(clip_id=stem(m.name), digest=str(m.digest), prompt=prompts.get(m.name)) for m in audio)
    return sorted(subjects, key=lambda one: one.clip_id)


def prompts_of(recipe: Recipe, found: ResolvedInputs) -> dict[str, str]:
    """What ingest would make of the captions as they are now, by the audio's name; those with faults are left out."""
    params = recipe.ingest_params()
    pairing = pair(found.source.members, templated=params.caption_template is not None)
    try:
        made = read_prompts(found.source, pairing, params).of_audio
    finally:
        forget_open_archives()
    return {name: prompt.text for name, prompt in made.items()}


def rows_of(store: Store, receipt: Receipt) -> Iterator[Clip]:
    """The clips of a finished ingest, one batch in memory at a time."""
    from cache.manifest import iter_rows  # deferred: the only arrays an explanation needs

    return iter_rows(store.directory("ingest", receipt.fingerprint) / "manifest.parquet", Clip)


class Look:
    """What the store knows about some clips, gathered once."""

    def __init__(self, recipe: Recipe, store: Store, found: ResolvedInputs, subjects: Sequence[Subject]) -> None:
        self.store, self.params = store, recipe.encode_params()
        self.ingest_params = recipe.ingest_params()
        self.audio = audio_params(self.ingest_params)
        self.weights = found.weights
        self.why_no_weights = found.why_no_weights
        self.ingests, self.encodes = earlier(store, subjects)

    def findings(self, subject: Subject) -> list[Finding]:
        """The lines about one clip."""
        parts = {"data": self.data, "prepared": self.prepared, "latents": self.latents, "prompt": self.prompt}
        return [
            Finding(clip_id=subject.clip_id, what=what, state=state, reason=reason)
            for what, look in parts.items()
            for state, reason in [look(subject)]
        ]

    def data(self, subject: Subject) -> tuple[str, str]:
        """Whether an earlier ingest knew these bytes."""
        known = _of(self.ingests, subject)
        same = [one for one in known if one.clip.digest == subject.digest]
        if same:
            renamed = "" if same[0].clip.clip_id == subject.clip_id else f" as {same[0].clip.clip_id}"
            return State.HIT.value, f"known to ingest {same[0].receipt.fingerprint[:12]}{renamed}"
        if known:
            return State.MISS.value, f"its bytes changed since ingest {known[0].receipt.fingerprint[:12]}"
        return State.MISS.value, "never seen"

    def prepared(self, subject: Subject) -> tuple[str, str]:
        """Whether its prepared audio is there."""
        path = prepared_place(subject.digest, self.ingest_params, subject.crop_start)
        if (self.store.shared / path).is_file():
            return State.HIT.value, f"shared/{path}"
        now = {"source": subject.digest, "crop_start": subject.crop_start, "audio": self.audio}
        before = [(one, {**_source(one), "audio": one.audio}) for one in _of(self.ingests, subject)]
        return State.MISS.value, _nearest(now, before, "its audio was dropped; made again when it is read")

    def latents(self, subject: Subject) -> tuple[str, str]:
        """Whether its latents are there."""
        if self.weights is None:
            return "?", self.why_no_weights
        autoencoder = self.weights.digests["autoencoder"]
        key = item_key(subject.digest, subject.crop_start, self.audio, self.params, autoencoder)
        place, gone = self._place("latents", key)
        if place is not None:
            return State.HIT.value, f"item {key[:12]} in shared/latents/{place.shard} row {place.row}"
        now = {
            "source": subject.digest,
            "crop_start": subject.crop_start,
            "version": ENCODE.version,
            "audio": self.audio,
            "encode": _decides(asdict(self.params)),
            "autoencoder": autoencoder,
            _MODEL: self.params.model,
        }
        before = [(one, _item_record(one)) for one in _of(self.encodes, subject)]
        return State.MISS.value, _nearest(now, before, gone or "its shard was evicted")

    def prompt(self, subject: Subject) -> tuple[str, str]:
        """Whether its prompt's hidden states are there."""
        if self.weights is None:
            return "?", self.why_no_weights
        if subject.prompt is None:
            return "?", UNKNOWN
        place, gone = self._place("prompts", prompt_key_of(subject.prompt, self.weights))
        if place is not None:
            return State.HIT.value, f"in shared/prompts/{place.shard} row {place.row}"
        encoder = self.weights.digests["text_encoder"]
        now = {"prompt": subject.prompt, "text_encoder": encoder, _MODEL: self.params.model}
        before = [(one, _prompt_record(one)) for one in _of(self.encodes, subject)]
        return State.MISS.value, _nearest(now, before, gone or "its shard was evicted")

    def _place(self, pool: str, key: str) -> tuple[Location | None, str]:
        """Where an item lies; else why the shard that held it does not any more."""
        folder = self.store.shared / pool
        place = (Registry(folder / f"registry-{self.params.latent_format}.sqlite").find([key]) or {}).get(key)
        if place is None or (folder / place.shard).is_file():
            return place, ""
        return None, f"shard {pool}/{place.shard} is gone"


def earlier(store: Store, subjects: Sequence[Subject]) -> tuple[list[Earlier], list[Earlier]]:
    """(ingests, encodings) that knew one of the clips by name or by bytes, newest first."""
    names, digests = ({getattr(one, name) for one in subjects} for name in ("clip_id", "digest"))
    ingests: list[Earlier] = []
    for receipt in store.receipts("ingest"):
        audio = receipt.facts.get("audio_params", {})
        rows = (row for row in rows_of(store, receipt) if row.clip_id in names or row.digest in digests)
        ingests += [Earlier(receipt=receipt, clip=row, audio=audio) for row in rows]
    by_ingest: dict[str, list[Earlier]] = {}
    for one in ingests:
        by_ingest.setdefault(one.receipt.fingerprint, []).append(one)
    encodes = [
        Earlier(receipt=receipt, clip=one.clip, audio=one.audio)
        for receipt in store.receipts("encode")
        for one in by_ingest.get(receipt.inputs.get("ingest", ""), ())
    ]
    return ingests, encodes


def _of(known: Sequence[Earlier], subject: Subject) -> list[Earlier]:
    """Those about one clip: of its name, or of its bytes under another."""
    return [one for one in known if subject.clip_id == one.clip.clip_id or subject.digest == one.clip.digest]


def _source(one: Earlier) -> dict[str, Any]:
    return {"source": one.clip.digest, "crop_start": one.clip.crop_start}


def _item_record(one: Earlier) -> dict[str, Any]:
    receipt = one.receipt
    return {
        **_source(one),
        "version": receipt.version,
        "audio": one.audio,
        "encode": _decides(receipt.params),
        "autoencoder": receipt.components["autoencoder"],
        _MODEL: receipt.params["model"],
    }


def _prompt_record(one: Earlier) -> dict[str, Any]:
    receipt = one.receipt
    return {
        "prompt": one.clip.prompt,
        "text_encoder": receipt.components["text_encoder"],
        _MODEL: receipt.params["model"],
    }


def _decides(params: Mapping[str, Any]) -> dict[str, Any]:
    """The encode params that decide latents, as `item_key` takes them."""
    names = [name for name in EncodeParams.__dataclass_fields__ if name not in ("latent_format", "model")]
    return {name: params.get(name) for name in names}


def _nearest(now: Mapping[str, Any], before: Sequence[tuple[Earlier, Mapping[str, Any]]], same: str) -> str:
    """What differs from the nearest earlier result, in words; `same` when nothing does."""
    if not before:
        return "never made"
    differences = [(differing(record, now), record, one.receipt) for one, record in before]
    names, record, receipt = min(differences, key=lambda found: len(found[0]))
    where = f"{receipt.stage} {receipt.fingerprint[:12]}"
    return f"{', '.join(_in_words(name, record, now) for name in names)} (since {where})" if names else same


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Fields in which two records differ; the model's name decides nothing and is only shown."""
    old, new = dict(leaves(before)), dict(leaves(now))
    return [name for name in {**new, **old} if name != _MODEL and old.get(name) != new.get(name)]


def _in_words(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name == "source":
        return "its bytes changed"
    if name in ("autoencoder", "text_encoder"):
        old, new = (f"{str(record[name])[:8]} ({record[_MODEL]})" for record in (before, now))
        return f"{name} {old} -> {new}"
    values = [str(dict(leaves(record)).get(name)) for record in (before, now)]
    return f"{name.rpartition('.')[2]} {' -> '.join(values)}"


def prompt_key_of(prompt: str, weights: Weights) -> str:
    """The key of a prompt's hidden states with this checkpoint's text encoder."""
    return prompt_key(prompt, weights.digests["text_encoder"], weights.sizes.max_prompt_tokens)


def explained_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """For programs."""
    return [asdict(finding) for finding in findings]


def explained_lines(findings: Sequence[Finding]) -> list[str]:
    """For people: the clip's name once, then its lines."""
    lines, shown = [], None
    for one in findings:
        if one.clip_id != shown:
            lines.append(one.clip_id)
            shown = one.clip_id
        lines.append(f"  {one.what:<9} {one.state:<5} {one.reason}")
    return lines
