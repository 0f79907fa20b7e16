"""Explains why a clip is a hit or a miss by comparing its cache keys with those of earlier results.

data       the clip's bytes
prepared   source bytes and audio params
latents    source bytes, audio params, encode params, autoencoder
prompt     text, text encoder

Light: the manifest reader is imported when it is used.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cache.location import Location
from cache.receipt import Receipt
from cache.registry import Registry
from cache.store import Store
from pipeline.errors import ClipNotFound
from pipeline.plan.changes import flattened
from pipeline.plan.current_clips import CurrentClip, clips_of_data, manifest_rows
from pipeline.plan.plan import plan
from pipeline.plan.stage_run import State, state_in_words
from pipeline.request.recipe import Recipe
from pipeline.request.resolve import ResolvedInputs
from stages.contract import Weights
from stages.encode.stage import STAGE as ENCODE
from stages.encode.stage import EncodeParams, item_key, prompt_key
from stages.ingest.file_types import stem
from stages.ingest.stage import audio_params, prepared_path
from stages.records import Clip

UNKNOWN_PROMPT = "its caption is missing or has a fault; ingest says which"
_MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The state of one cached part of a clip."""

    clip_id: str
    what: str
    """`data`, `prepared`, `latents` or `prompt`."""
    state: str
    """`HIT`, `MISS`, or `?` where an earlier stage must run first."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class EarlierResult:
    """An earlier result that contains a clip."""

    receipt: Receipt
    """The receipt of an ingest, or of an encoding that read it."""
    clip: Clip
    """The clip as that ingest listed it."""
    audio: Mapping[str, Any]
    """Audio params of that ingest."""


def explain(recipe: Recipe, store: Store, resolved: ResolvedInputs, clip: str | None) -> list[Finding]:
    """Findings for one clip, or for every clip of the data.

    Raises:
        ClipNotFound: the message lists similar names.
    """
    clips = current_clips(recipe, store, resolved)
    if clip is not None:
        wanted = {clip, stem(clip)}
        chosen = [one for one in clips if one.clip_id in wanted or one.clip_id.partition("#")[0] in wanted]
        if not chosen:
            raise ClipNotFound(clip, difflib.get_close_matches(clip, [one.clip_id for one in clips], 3))
        clips = chosen
    explainer = Explainer(recipe, store, resolved, clips)
    return [finding for one in clips for finding in explainer.findings(one)]


def current_clips(recipe: Recipe, store: Store, resolved: ResolvedInputs) -> list[CurrentClip]:
    """Every clip: from the manifest of a finished ingest, else from the file names and captions of the data."""
    (ingest,) = plan(recipe, store, resolved, "ingest").runs
    receipt = store.find("ingest", str(ingest.fingerprint))
    if receipt is not None:
        return [
            CurrentClip(clip_id=row.clip_id, digest=row.digest, crop_start=row.crop_start, prompt=row.prompt)
            for row in manifest_rows(store, receipt)
        ]
    return clips_of_data(recipe, resolved)


class Explainer:
    """Compares clips with the earlier results in a store, which are read once."""

    def __init__(self, recipe: Recipe, store: Store, resolved: ResolvedInputs, clips: Sequence[CurrentClip]) -> None:
        self.store, self.params = store, recipe.encode_params()
        self.ingest_params = recipe.ingest_params()
        self.audio = audio_params(self.ingest_params)
        self.weights = resolved.weights
        self.why_no_weights = resolved.why_no_weights
        self.ingests, self.encodes = earlier_results(store, clips)

    def findings(self, clip: CurrentClip) -> list[Finding]:
        """The findings about one clip."""
        parts = {"data": self.data, "prepared": self.prepared, "latents": self.latents, "prompt": self.prompt}
        return [
            Finding(clip_id=clip.clip_id, what=what, state=state, reason=reason)
            for what, finding in parts.items()
            for state, reason in [finding(clip)]
        ]

    def data(self, clip: CurrentClip) -> tuple[str, str]:
        """(state, reason): whether an earlier ingest contains the same bytes."""
        known = _about(self.ingests, clip)
        same = [one for one in known if one.clip.digest == clip.digest]
        if same:
            renamed = "" if same[0].clip.clip_id == clip.clip_id else f" as {same[0].clip.clip_id}"
            return State.HIT.value, f"known to ingest {same[0].receipt.fingerprint[:12]}{renamed}"
        if known:
            return State.MISS.value, f"its bytes changed since ingest {known[0].receipt.fingerprint[:12]}"
        return State.MISS.value, "never seen"

    def prepared(self, clip: CurrentClip) -> tuple[str, str]:
        """(state, reason): whether its prepared audio exists."""
        path = prepared_path(clip.digest, self.ingest_params, clip.crop_start)
        if (self.store.shared / path).is_file():
            return State.HIT.value, f"shared/{path}"
        now = {"source": clip.digest, "crop_start": clip.crop_start, "audio": self.audio}
        before = [(one, {**_source(one), "audio": one.audio}) for one in _about(self.ingests, clip)]
        return State.MISS.value, _nearest(now, before, "its audio was dropped; made again when it is read")

    def latents(self, clip: CurrentClip) -> tuple[str, str]:
        """(state, reason): whether its latents exist."""
        if self.weights is None:
            return "?", self.why_no_weights
        autoencoder = self.weights.digests["autoencoder"]
        key = item_key(clip.digest, clip.crop_start, self.audio, self.params, autoencoder)
        location, gone = self._location("latents", key)
        if location is not None:
            return State.HIT.value, f"item {key[:12]} in shared/latents/{location.shard} row {location.row}"
        now = {
            "source": clip.digest,
            "crop_start": clip.crop_start,
            "version": ENCODE.version,
            "audio": self.audio,
            "encode": _hashed_params(asdict(self.params)),
            "autoencoder": autoencoder,
            _MODEL: self.params.model,
        }
        before = [(one, _item_record(one)) for one in _about(self.encodes, clip)]
        return State.MISS.value, _nearest(now, before, gone or "its shard was evicted")

    def prompt(self, clip: CurrentClip) -> tuple[str, str]:
        """(state, reason): whether the hidden states of its prompt exist."""
        if self.weights is None:
            return "?", self.why_no_weights
        if clip.prompt is None:
            return "?", UNKNOWN_PROMPT
        location, gone = self._location("prompts", _prompt_key(clip.prompt, self.weights))
        if location is not None:
            return State.HIT.value, f"in shared/prompts/{location.shard} row {location.row}"
        encoder = self.weights.digests["text_encoder"]
        now = {"prompt": clip.prompt, "text_encoder": encoder, _MODEL: self.params.model}
        before = [(one, _prompt_record(one)) for one in _about(self.encodes, clip)]
        return State.MISS.value, _nearest(now, before, gone or "its shard was evicted")

    def _location(self, pool: str, key: str) -> tuple[Location | None, str]:
        """(location of an item, or None; reason why its shard is missing, or nothing)."""
        folder = self.store.shared / pool
        location = (Registry(folder, self.params.latent_format).find([key]) or {}).get(key)
        if location is None or (folder / location.shard).is_file():
            return location, ""
        return None, f"shard {pool}/{location.shard} is gone"


def earlier_results(store: Store, clips: Sequence[CurrentClip]) -> tuple[list[EarlierResult], list[EarlierResult]]:
    """(ingests, encodings) that contain one of the clips, by name or by bytes, newest first."""
    names, digests = {one.clip_id for one in clips}, {one.digest for one in clips}
    ingests: list[EarlierResult] = []
    for receipt in store.receipts("ingest"):
        audio = receipt.facts.get("audio_params", {})
        rows = (row for row in manifest_rows(store, receipt) if row.clip_id in names or row.digest in digests)
        ingests += [EarlierResult(receipt=receipt, clip=row, audio=audio) for row in rows]
    by_ingest: dict[str, list[EarlierResult]] = {}
    for one in ingests:
        by_ingest.setdefault(one.receipt.fingerprint, []).append(one)
    encodes = [
        EarlierResult(receipt=receipt, clip=one.clip, audio=one.audio)
        for receipt in store.receipts("encode")
        for one in by_ingest.get(receipt.inputs.get("ingest", ""), ())
    ]
    return ingests, encodes


def _about(known: Sequence[EarlierResult], clip: CurrentClip) -> list[EarlierResult]:
    """The results that contain a clip of the same name, or the same bytes under another name."""
    return [one for one in known if clip.clip_id == one.clip.clip_id or clip.digest == one.clip.digest]


def _source(one: EarlierResult) -> dict[str, Any]:
    return {"source": one.clip.digest, "crop_start": one.clip.crop_start}


def _item_record(one: EarlierResult) -> dict[str, Any]:
    receipt = one.receipt
    return {
        **_source(one),
        "version": receipt.version,
        "audio": one.audio,
        "encode": _hashed_params(receipt.params),
        "autoencoder": receipt.components["autoencoder"],
        _MODEL: receipt.params["model"],
    }


def _prompt_record(one: EarlierResult) -> dict[str, Any]:
    receipt = one.receipt
    return {
        "prompt": one.clip.prompt,
        "text_encoder": receipt.components["text_encoder"],
        _MODEL: receipt.params["model"],
    }


def _hashed_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The encode params that are part of `item_key`."""
    names = [name for name in EncodeParams.__dataclass_fields__ if name not in ("latent_format", "model")]
    return {name: params.get(name) for name in names}


def _nearest(now: Mapping[str, Any], before: Sequence[tuple[EarlierResult, Mapping[str, Any]]], same: str) -> str:
    """The differences from the most similar earlier result, in words; `same` if there are none."""
    if not before:
        return "never made"
    differences = [(differing(record, now), record, one.receipt) for one, record in before]
    names, record, receipt = min(differences, key=lambda difference: len(difference[0]))
    where = f"{receipt.stage} {receipt.fingerprint[:12]}"
    return f"{', '.join(_change(name, record, now) for name in names)} (since {where})" if names else same


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the fields in which two records differ. The model's name is not compared: it is only displayed."""
    old, new = dict(flattened(before)), dict(flattened(now))
    return [name for name in {**new, **old} if name != _MODEL and old.get(name) != new.get(name)]


def _change(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name == "source":
        return "its bytes changed"
    if name in ("autoencoder", "text_encoder"):
        old, new = (f"{str(record[name])[:8]} ({record[_MODEL]})" for record in (before, now))
        return f"{name} {old} -> {new}"
    values = [str(dict(flattened(record)).get(name)) for record in (before, now)]
    return f"{name.rpartition('.')[2]} {' -> '.join(values)}"


def _prompt_key(prompt: str, weights: Weights) -> str:
    """The key of a prompt's hidden states from this checkpoint's text encoder."""
    return prompt_key(prompt, weights.digests["text_encoder"], weights.sizes.max_prompt_tokens)


def explained_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings for programs, as JSON values."""
    return {"findings": [asdict(finding) for finding in findings]}


def explained_lines(findings: Sequence[Finding]) -> list[str]:
    """The findings for people: the name of a clip once, then its lines."""
    lines, shown = [], None
    for one in findings:
        if one.clip_id != shown:
            lines.append(one.clip_id)
            shown = one.clip_id
        lines.append(f"  {one.what:<9} {_word(one):<7} {one.reason}")
    return lines


_NEVER = ("never seen", "never made")


def _word(finding: Finding) -> str:
    """The state of a finding for people."""
    if finding.state not in State.__members__:
        return finding.state
    return state_in_words(State[finding.state], changed=finding.reason not in _NEVER)
